package fetcher

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
)

// Requests that a fetcher answers: it is where the network and the keys are.
const (
	// TestSubject asks for a connection test; the body is a [TestRequest], the answers are steps ([mailbox.Step] as
	// JSON), the last one empty with the header posthorn-last.
	TestSubject = "fetcher.v1.test"
	// TraceSubject asks to show the protocol of a source for ten minutes; the body is a [TraceRequest]. Lines come on
	// [TraceLines] of the source.
	TraceSubject = "fetcher.v1.trace"
	// HeaderTestEnd is on the last answer to a test: "ok" or "failed".
	HeaderTestEnd = "posthorn-test-end"
)

// traceFor is how long a trace runs after it was asked for.
const traceFor = 10 * time.Minute

// TraceLines is the subject on which the protocol lines of a traced source are shown.
func TraceLines(sourceID string) string { return "fetcher.v1.trace-lines." + sourceID }

// TestRequest names a stored source, or carries one that is not stored yet.
type TestRequest struct {
	ID     string         `json:"id,omitempty"`
	Source *source.Source `json:"source,omitempty"`
}

// TraceRequest names the source to trace.
type TraceRequest struct {
	ID string `json:"id"`
}

// TraceLine is one line of a protocol, with secrets cut and bodies left out.
type TraceLine struct {
	At        time.Time `json:"at"`
	Direction string    `json:"direction"` // C: we sent it; S: the server did
	Line      string    `json:"line"`
}

func (f *Fetcher) answerTests(ctx context.Context) error {
	err := f.conn.Respond(ctx, TestSubject, "fetcher", func(ctx context.Context, request bus.Request) error {
		err := f.test(ctx, request)
		if err == nil {
			return nil
		}
		e := fault.As(err)
		step := mailbox.Step{Name: "source", Status: mailbox.StepFail, Fault: e}
		body, marshalErr := json.Marshal(step)
		if marshalErr != nil {
			return marshalErr
		}
		if err := request.Reply(nil, body); err != nil {
			return err
		}
		return request.Reply(map[string]string{HeaderTestEnd: "failed"}, nil)
	})
	if err != nil {
		return err
	}
	return f.conn.Respond(ctx, TraceSubject, "", func(_ context.Context, request bus.Request) error {
		var asked TraceRequest
		if err := json.Unmarshal(request.Body, &asked); err != nil {
			return err
		}
		f.traces.start(asked.ID)
		return request.Reply(nil, []byte(`{}`))
	})
}

// test runs a connection test and streams its steps. It never changes a mailbox.
func (f *Fetcher) test(ctx context.Context, request bus.Request) error {
	var asked TestRequest
	if err := json.Unmarshal(request.Body, &asked); err != nil {
		return err
	}
	s := asked.Source
	if s == nil {
		stored, err := f.deps.Sources.Get(ctx, asked.ID)
		if err != nil {
			return err
		}
		s = &stored
	}
	settings, err := f.deps.Settings(*s, f.cfg.Mail)
	if err != nil {
		return err
	}
	lock, err := f.deps.LockMaildrop(ctx, *s)
	if err != nil {
		return err
	}
	if lock != nil {
		defer stage.Release(lock, f.log)
	}
	options := mailbox.TestOptions{Disposition: s.AfterFetch, Archive: s.ArchiveMailbox}
	var sendErr error
	testErr := mailbox.Test(ctx, settings, options, func(step mailbox.Step) {
		body, err := json.Marshal(step)
		if err == nil {
			err = request.Reply(nil, body)
		}
		if err != nil && sendErr == nil {
			sendErr = err
		}
	})
	if sendErr != nil {
		return sendErr
	}
	end := "ok"
	if testErr != nil {
		end = "failed"
	}
	return request.Reply(map[string]string{HeaderTestEnd: end}, nil)
}

// traces shows the protocol of sources that somebody asked to see.
type traces struct {
	conn *bus.Conn
	now  func() time.Time
	mu   sync.Mutex
	till map[string]time.Time
}

func newTraces(conn *bus.Conn, now func() time.Time) *traces {
	return &traces{conn: conn, now: now, till: map[string]time.Time{}}
}

func (t *traces) start(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.till[id] = t.now().Add(traceFor)
}

// line is the trace hook of one source. It costs a look at the clock while nobody is watching.
func (t *traces) line(id string) func(direction, line string) {
	return func(direction, line string) {
		t.mu.Lock()
		till, on := t.till[id]
		if on && t.now().After(till) {
			delete(t.till, id)
			on = false
		}
		t.mu.Unlock()
		if !on {
			return
		}
		body, err := json.Marshal(TraceLine{At: t.now().UTC(), Direction: direction, Line: line})
		if err != nil {
			return
		}
		_ = t.conn.Broadcast(TraceLines(id), body) // a trace nobody receives is no loss
	}
}
