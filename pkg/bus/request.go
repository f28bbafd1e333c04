package bus

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"posthorn/pkg/fault"
)

// headerFault is on the reply that ends a request with an error: the code. The parameters are the body, as JSON.
const headerFault = "Posthorn-Fault"

// mostRequests is how many requests of one [Conn.Respond] are handled at the same time; more wait.
const mostRequests = 16

// Request is a question from another process.
type Request struct {
	Subject string
	Header  map[string]string
	Body    []byte

	conn *Conn
	to   string
}

// Reply sends one reply. There may be many: the two sides agree on how the last one is told.
func (r Request) Reply(header map[string]string, body []byte) error {
	msg := &nats.Msg{Subject: r.to, Data: body, Header: make(nats.Header, len(header))}
	for name, value := range header {
		msg.Header[name] = []string{value}
	}
	return r.conn.fault(r.conn.nc.PublishMsg(msg), time.Now(), r.Subject)
}

// Respond answers requests until ctx ends. It returns as soon as requests can come. Of all responders with one queue
// name, in whatever process, one gets each request. An error of handle goes to who asks, as a fault with its code and
// parameters, and no cause.
func (c *Conn) Respond(
	ctx context.Context, subject, queue string, handle func(context.Context, Request) error,
) error {
	slots := make(chan struct{}, mostRequests)
	return c.subscribe(ctx, subject, queue, func(msg *nats.Msg) {
		if msg.Reply == "" {
			return
		}
		request := Request{
			Subject: msg.Subject, Header: firstValues(msg.Header), Body: msg.Data, conn: c, to: msg.Reply,
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		go func() {
			defer func() { <-slots }()
			err := handle(ctx, request)
			if err == nil {
				return
			}
			failure := fault.As(err)
			params, _ := json.Marshal(failure.Params) // a map of strings is always JSON
			if err := request.Reply(map[string]string{headerFault: string(failure.Code)}, params); err != nil {
				c.log.Debug("request not answered", "subject", msg.Subject, "error", err)
			}
		}()
	})
}

// Ask sends a request and calls each for every reply until it says done, or returns an error, which Ask returns. Nobody
// there to answer is store.nobody_answers, at once; an error of the other side is a fault with its code. When ctx ends,
// the connection is lost, or half a minute passes without a reply, it is store.unavailable.
func (c *Conn) Ask(
	ctx context.Context, subject string, header map[string]string, body []byte,
	each func(header map[string]string, body []byte) (done bool, err error),
) error {
	began := time.Now()
	inbox := c.nc.NewInbox()
	sub, err := c.nc.SubscribeSync(inbox)
	if err != nil {
		return c.fault(err, began, subject)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only without a connection, which ends the subscription too
	msg := &nats.Msg{Subject: subject, Reply: inbox, Data: body, Header: make(nats.Header, len(header))}
	for name, value := range header {
		msg.Header[name] = []string{value}
	}
	if err := c.nc.PublishMsg(msg); err != nil {
		return c.fault(err, began, subject)
	}
	for {
		waiting, cancel := c.within(ctx, 30*time.Second)
		reply, err := sub.NextMsgWithContext(waiting)
		cancel()
		if errors.Is(err, nats.ErrNoResponders) {
			return fault.New(fault.StoreNobody, err, fault.Params{"subject": subject})
		}
		if err != nil {
			return c.fault(err, began, subject)
		}
		if code := reply.Header.Get(headerFault); code != "" {
			var params fault.Params
			if err := json.Unmarshal(reply.Data, &params); err != nil {
				params = nil
			}
			return fault.New(fault.Code(code), nil, params)
		}
		done, err := each(firstValues(reply.Header), reply.Data)
		if done || err != nil {
			return err
		}
	}
}

// Broadcast sends something to whoever listens now. It is not stored.
func (c *Conn) Broadcast(subject string, body []byte) error {
	return c.fault(c.nc.Publish(subject, body), time.Now(), subject)
}

// Listen calls each, one after the other, for what is broadcast on the subjects that match, until ctx ends. It returns
// as soon as it listens. A listener that is too slow misses some.
func (c *Conn) Listen(ctx context.Context, subject string, each func(subject string, body []byte)) error {
	return c.subscribe(ctx, subject, "", func(msg *nats.Msg) { each(msg.Subject, msg.Data) })
}

// subscribe subscribes until ctx ends, and returns once the server knows.
func (c *Conn) subscribe(ctx context.Context, subject, queue string, each nats.MsgHandler) error {
	began := time.Now()
	sub, err := c.nc.QueueSubscribe(subject, queue, each)
	if err != nil {
		return c.fault(err, began, subject)
	}
	end := sync.OnceFunc(func() { _ = sub.Unsubscribe() }) // fails only without a connection
	flush, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	if err := c.nc.FlushWithContext(flush); err != nil {
		end()
		return c.fault(err, began, subject)
	}
	// A refusal came before the answer to the flush; its handler may not have run yet.
	last := c.nc.LastError()
	if errors.Is(last, nats.ErrPermissionViolation) && strings.Contains(last.Error(), `Subscription to "`+subject+`"`) {
		end()
		return fault.New(fault.StoreDenied, last, fault.Params{"right": permission(last.Error())})
	}
	context.AfterFunc(ctx, end)
	return nil
}
