// Package contract is everything a stranger may rely on: the subjects, streams, headers, identities and event bodies of
// Posthorn. It imports the standard library only, so that any program can use it without a NATS client.
//
// Every subject ends in keys, so that wildcards filter:
//
//	mail.v1.raw.<source>.<mail>
//	mail.v1.{parsed,skipped,evaluate}.<source>
//	contact-request.v1.<event>.<workflow>.<source>.<key>
//	mailbox.v1.{dispose,disposed}.<shard>.<source>
//	dead-letter.v1.<stage>.<source>.<mail>
//	source.v1.<event>.<source>
//
// Events are CloudEvents 1.0 in NATS binary mode: attributes travel in `ce-*` headers (NATS header names are
// case-sensitive: they are lower case, always), the body is plain JSON. Inside v1 fields are only ever added; readers
// ignore fields and values they do not know.
package contract
