package bus

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// PullConsumer hands out the messages of a durable consumer in batches, for a stage that works on many at once. What is
// not settled within the ack wait (10 s), prolonged by [PullConsumer.Keep], is delivered again.
type PullConsumer struct {
	conn     *Conn
	stream   contract.Stream
	name     string
	consumer jetstream.Consumer
}

// Delivery is a message that has to be settled.
type Delivery struct {
	Stored

	// Delivered is how often it was delivered, this time included.
	Delivered int
	conn      *Conn
	msg       jetstream.Msg
	settled   bool
}

// Settled tells whether Ack or Nak was called without an error.
func (d *Delivery) Settled() bool { return d.settled }

// Orders opens the durable consumer of a stream that reads the messages matching the filter, and creates it when it is
// missing.
func (c *Conn) Orders(ctx context.Context, stream contract.Stream, durable, filter string) (*PullConsumer, error) {
	began := time.Now()
	consumer, err := c.js.Consumer(ctx, string(stream), durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		consumer, err = c.js.CreateConsumer(ctx, string(stream), durableConfig(durable, []string{filter}, ackWait))
	}
	if err != nil {
		return nil, c.fault(err, began, "the consumer "+durable)
	}
	return &PullConsumer{conn: c, stream: stream, name: durable, consumer: consumer}, nil
}

// Fetch returns up to most messages. It waits for the first one, at most as long as wait, and not for more than that;
// none is no error.
func (p *PullConsumer) Fetch(ctx context.Context, most int, wait time.Duration) ([]*Delivery, error) {
	began := time.Now()
	deliveries, err := p.collect(p.consumer.FetchNoWait(most))
	if err != nil || len(deliveries) > 0 || wait <= 0 {
		return deliveries, p.conn.fault(err, began, "the consumer "+p.name)
	}
	waiting, cancel := p.conn.within(ctx, wait)
	defer cancel()
	first, err := p.consumer.Next(jetstream.FetchContext(waiting))
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		timeout := errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)
		if timeout && p.conn.nc.IsConnected() && p.conn.deniedSince(began) == "" {
			return nil, nil
		}
		return nil, p.conn.fault(err, began, "the consumer "+p.name)
	}
	delivery, err := p.conn.delivery(first)
	if err != nil {
		return nil, err
	}
	deliveries = []*Delivery{delivery}
	if most > 1 {
		more, err := p.collect(p.consumer.FetchNoWait(most - 1))
		if err != nil {
			p.conn.log.Debug("fetching more failed", "consumer", p.name, "error", fault.Quote(err.Error()))
		}
		deliveries = append(deliveries, more...)
	}
	return deliveries, nil
}

func (p *PullConsumer) collect(batch jetstream.MessageBatch, err error) ([]*Delivery, error) {
	if err != nil {
		return nil, err
	}
	var deliveries []*Delivery
	for msg := range batch.Messages() {
		delivery, err := p.conn.delivery(msg)
		if err != nil {
			return deliveries, err
		}
		deliveries = append(deliveries, delivery)
	}
	if err := batch.Error(); err != nil && len(deliveries) == 0 {
		return nil, err
	}
	return deliveries, nil
}

func (c *Conn) delivery(msg jetstream.Msg) (*Delivery, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, err
	}
	return &Delivery{
		Stored: Stored{
			Stream: contract.Stream(meta.Stream), Subject: msg.Subject(), Sequence: meta.Sequence.Stream,
			Time: meta.Timestamp.UTC(), Header: firstValues(msg.Headers()), Body: msg.Data(),
		},
		Delivered: int(min(meta.NumDelivered, 1<<30)), //nolint:gosec // bounded
		conn:      c, msg: msg,
	}, nil
}

// Ack settles the message and returns once the broker knows. After an error it may be delivered again.
func (d *Delivery) Ack(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := d.conn.within(ctx, attempt)
	defer cancel()
	err := d.msg.DoubleAck(ctx)
	d.settled = d.settled || err == nil
	return d.conn.fault(err, began, string(d.Stream))
}

// Nak gives the message back, to be delivered again after a delay.
func (d *Delivery) Nak(_ context.Context, delay time.Duration) error {
	err := d.msg.NakWithDelay(delay)
	d.settled = d.settled || err == nil
	return d.conn.fault(err, time.Now(), string(d.Stream))
}

// InProgress is a sign of life: the ack wait begins anew.
func (d *Delivery) InProgress() error {
	return d.conn.fault(d.msg.InProgress(), time.Now(), string(d.Stream))
}

// Keep sends a sign of life for the deliveries every 3 seconds until stop is called. Settled ones do no harm.
func (p *PullConsumer) Keep(ctx context.Context, deliveries []*Delivery) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(ackWait * 3 / 10)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			for _, delivery := range deliveries {
				if err := delivery.msg.InProgress(); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
					p.conn.log.Debug("sign of life not sent", "consumer", p.name, "error", fault.Quote(err.Error()))
				}
			}
		}
	}()
	return sync.OnceFunc(func() { cancel(); <-done })
}

// Pending tells how many messages are not settled: those never delivered and those in hand or given back.
func (p *PullConsumer) Pending(ctx context.Context) (uint64, error) {
	pending, inHand, err := p.conn.Lag(ctx, p.stream, p.name)
	return pending + inHand, err
}

// DeleteConsumer removes a durable consumer, with its position. It is no error when there is none.
func (c *Conn) DeleteConsumer(ctx context.Context, stream contract.Stream, durable string) error {
	began := time.Now()
	err := c.js.DeleteConsumer(ctx, string(stream), durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil
	}
	return c.fault(err, began, "the consumer "+durable)
}
