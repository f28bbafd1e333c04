// Package bus is the only package that knows JetStream: connecting, provisioning, publishing, subscribing, reading,
// keys and values, objects, leases, and requests. No NATS type appears in what it exports.
//
// What it promises to the stages:
//
//   - A [Publisher] says stored only when the broker said so. Concurrent publishes are coalesced into atomic batches,
//     so that they share the cost of writing to disk (group commit). A full store is never taken for "already stored".
//   - A [Subscriber] settles each message once its handler returned: done, tried again later, or set aside whole as a
//     dead letter. A message that came back without having been given back runs alone, and is set aside when it ended
//     the process three times.
//   - Every error is a fault with a code of class store, except [ErrNotFound] and [AlreadyStored].
//
// A NATS user of a stage needs these rights on the streams (of a bucket: KV_<bucket>, OBJ_<bucket>) that it reads:
// $JS.API.STREAM.INFO.<stream>, $JS.API.STREAM.MSG.GET.<stream> ([Conn.Last] asks the leader),
// $JS.API.DIRECT.GET.<stream>, and for scans and watches $JS.API.CONSUMER.{CREATE,DELETE,INFO,MSG.NEXT}.<stream>.>; on
// its durable $JS.API.CONSUMER.{INFO,MSG.NEXT}.<stream>.<durable> and $JS.ACK.<stream>.<durable>.>.
package bus
