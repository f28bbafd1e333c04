package bus

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"posthorn/pkg/contract"
)

// Headers of an atomic batch (ADR-50 of NATS).
const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"
)

// noBatchFor is for how long a stream that refuses batches altogether is not asked for one again.
const noBatchFor = time.Minute

// queue is what waits to be published to one stream. One goroutine, there only while something waits, takes whatever
// waits and publishes it: as a batch when it is enough for one, else one by one. What is published meanwhile waits for
// the next turn, so batches grow with the load by themselves.
type queue struct {
	publisher *Publisher
	stream    contract.Stream

	mu      sync.Mutex
	running bool
	waiting []*entry
	noBatch time.Time // no batches before then
}

// entry is one message that waits, and where its outcome goes.
type entry struct {
	out  Outgoing
	ack  Ack
	err  error
	done chan struct{}
}

// publish queues a message and waits for its outcome.
func (q *queue) publish(ctx context.Context, out Outgoing) (Ack, error) {
	e := &entry{out: out, done: make(chan struct{})}
	q.mu.Lock()
	q.waiting = append(q.waiting, e)
	if !q.running {
		q.running = true
		go q.run()
	}
	q.mu.Unlock()
	select {
	case <-e.done:
		return e.ack, e.err
	case <-ctx.Done():
	}
	q.mu.Lock()
	for i, waiting := range q.waiting {
		if waiting == e {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			break
		}
	}
	q.mu.Unlock()
	select {
	case <-e.done:
		return e.ack, e.err
	default:
		return Ack{}, ctx.Err()
	}
}

func (q *queue) run() {
	for {
		entries, batch := q.take()
		switch {
		case len(entries) == 0:
			return
		case batch && q.publisher.batch(entries, q):
		default:
			singly(q.publisher, entries)
		}
	}
}

// take removes the next messages to be published from the queue, and tells whether they can go as a batch.
func (q *queue) take() ([]*entry, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.running = false
		return nil, false
	}
	config := q.publisher.config
	if len(q.waiting) < config.BatchFrom || config.BatchMax < 2 || time.Now().Before(q.noBatch) {
		taken := q.waiting[:min(len(q.waiting), max(config.BatchFrom, 1))]
		q.waiting = append([]*entry(nil), q.waiting[len(taken):]...)
		return taken, false
	}
	var taken, left []*entry
	load := batchLoad{touched: map[string]struct{}{}, expected: map[string]struct{}{}}
	for i, e := range q.waiting {
		if len(taken) == config.BatchMax {
			left = append(left, q.waiting[i:]...)
			break
		}
		if !load.add(&e.out, config.BatchBytes) {
			left = append(left, e)
			continue
		}
		taken = append(taken, e)
	}
	if len(taken) < config.BatchFrom {
		// Too few go together: singly then, the oldest first.
		taken = q.waiting[:config.BatchFrom]
		q.waiting = append([]*entry(nil), q.waiting[config.BatchFrom:]...)
		return taken, false
	}
	q.waiting = left
	return taken, true
}

// batchLoad is what the messages taken into a batch stand on. The broker compares an expectation with what is stored,
// not with the other messages of the batch (measured), so no message may touch what another one expects something of.
type batchLoad struct {
	bytes             int
	touched, expected map[string]struct{}
}

// add takes a message in, unless it does not fit.
func (l *batchLoad) add(out *Outgoing, most int) bool {
	if out.alone() || l.bytes > 0 && l.bytes+len(out.Body) > most {
		return false
	}
	// A filter with wildcards is known by its last token, which all subjects it matches share.
	touched := []string{"=" + out.Subject, "*" + lastToken(out.Subject)}
	if out.ID != "" {
		touched = append(touched, "#"+out.ID)
	}
	var expected []string
	if filter, _, ok := out.expectation(); ok {
		expected = append(expected, "="+filter)
		if strings.ContainsAny(filter, "*>") {
			expected = append(expected, "*"+lastToken(filter))
		}
	}
	for _, key := range touched {
		_, isExpected := l.expected[key]
		_, isTouched := l.touched[key]
		if isExpected || isTouched && strings.HasPrefix(key, "#") {
			return false
		}
	}
	for _, key := range expected {
		_, isExpected := l.expected[key]
		_, isTouched := l.touched[key]
		if isExpected || isTouched {
			return false
		}
	}
	for _, key := range touched {
		l.touched[key] = struct{}{}
	}
	for _, key := range expected {
		l.expected[key] = struct{}{}
	}
	l.bytes += len(out.Body)
	return true
}

func lastToken(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }

// singly publishes messages one by one, at the same time.
func singly(p *Publisher, entries []*entry) {
	var wait sync.WaitGroup
	for len(entries) > 0 {
		some := entries[:min(len(entries), p.config.BatchFrom)]
		entries = entries[len(some):]
		for _, e := range some {
			wait.Go(func() {
				e.ack, e.err = p.single(&e.out)
				close(e.done)
			})
		}
		wait.Wait()
	}
}

// batch publishes messages as one atomic batch: all are stored, or none. It returns false when the broker refused it,
// which happens on account of a single message; the messages then go singly. When the outcome is unknown the messages
// get that as their error, as their publishers know what to do.
func (p *Publisher) batch(entries []*entry, q *queue) bool {
	id, last := nuid.Next(), len(entries)-1
	ack, err := func() (publishAnswer, error) {
		for i, e := range entries {
			msg := e.out.message()
			msg.Header[headerBatchID] = []string{id}
			msg.Header[headerBatchSequence] = []string{strconv.Itoa(i + 1)}
			if i < last {
				if err := p.conn.nc.PublishMsg(msg); err != nil {
					return publishAnswer{}, err
				}
				continue
			}
			msg.Header[headerBatchCommit] = []string{"1"}
			ctx, cancel := p.conn.within(context.Background(), p.config.Attempt)
			response, err := p.conn.nc.RequestMsgWithContext(ctx, msg)
			cancel()
			if err != nil {
				return publishAnswer{}, err
			}
			return pubAck(response.Data)
		}
		return publishAnswer{}, nil
	}()
	switch errCode(err) {
	case codeAtomicDisabled, codeBatchTooLarge:
		q.mu.Lock()
		q.noBatch = time.Now().Add(noBatchFor)
		q.mu.Unlock()
	}
	if err == nil && (ack.Batch != id || ack.Count != len(entries)) {
		err = jetstream.ErrInvalidJSAck
	}
	if err != nil && !unknownOutcome(err) {
		p.mu.Lock()
		p.refused++
		p.mu.Unlock()
		return false
	}
	for i, e := range entries {
		// The messages of a batch are stored in one piece, the last one's sequence is the batch's.
		e.ack, e.err = Ack{Stream: contract.Stream(ack.Stream), Sequence: ack.Sequence - uint64(last-i)}, err
		close(e.done)
	}
	if err == nil {
		p.mu.Lock()
		p.batches, p.batched = p.batches+1, p.batched+len(entries)
		p.mu.Unlock()
	}
	return true
}
