package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// mostPanics is how many panics of its handler a message may cause in one process before it is set aside.
const mostPanics = 3

// mostDeaths is how often a message may end the process while it runs alone before it is set aside.
const mostDeaths = 3

// slip travels with a message through the router and brings back what its handler returned.
type slip struct {
	stored Stored

	mu       sync.Mutex
	err      error
	panicked bool
}

type slipKey struct{}

func (s *slip) verdict() verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	return verdict{err: s.err, panicked: s.panicked}
}

// Settle is the middleware of watermill's router that tells the [Subscriber] what a handler returned, so that it can
// tell temporary from permanent errors. It turns a panic into an error, with the place in the cause for the log. Add
// it outermost.
func Settle(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		slip, _ := msg.Context().Value(slipKey{}).(*slip)
		panicked := true
		defer func() {
			if panicked {
				produced, err = nil, fault.New(fault.StoreUnknown, panicError(recover()), nil)
			}
			if slip != nil {
				slip.mu.Lock()
				slip.err, slip.panicked = err, panicked
				slip.mu.Unlock()
			}
		}()
		produced, err = next(msg)
		panicked = false
		return produced, err
	}
}

// panicError tells what panicked and where. The words of a panic may hold the content of a mail, so only those of the
// runtime itself are kept.
func panicError(value any) error {
	what := fmt.Sprintf("%T", value)
	if err, ok := value.(runtime.Error); ok {
		what = err.Error()
	}
	pcs := make([]uintptr, 16)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for more := true; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		if !strings.HasPrefix(frame.Function, "runtime.") {
			return fmt.Errorf("panic in %s, %s:%d: %s", frame.Function, filepath.Base(frame.File), frame.Line, what)
		}
	}
	return errors.New("panic: " + what)
}

// StoredOf is the message of a stream that a handler was given, by its context.
func StoredOf(msg *message.Message) (Stored, bool) {
	slip, ok := msg.Context().Value(slipKey{}).(*slip)
	if !ok {
		return Stored{}, false
	}
	return slip.stored, true
}

// setAside stores the dead letter of a message, once.
func (s *Subscriber) setAside(d *delivery, reason error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	source, mail := s.config.Keys(d.Stored)
	if !contract.ValidToken(source) {
		source = "unknown"
	}
	if !contract.ValidToken(mail) {
		mail = "unknown"
	}
	subject := contract.DeadLetterSubject(s.config.Stage, source, mail)
	// After a crash between the dead letter and the ack the same message is here again.
	last, err := s.conn.Last(ctx, contract.StreamDeadLetters, subject)
	if err == nil {
		var letter contract.DeadLetter
		if json.Unmarshal(last.Body, &letter) == nil &&
			letter.Message.Stream == string(d.Stream) && letter.Message.Sequence == d.Sequence {
			return nil
		}
	}
	failure := fault.As(reason)
	now := time.Now().UTC()
	body, err := json.Marshal(contract.DeadLetter{
		Stage: s.config.Stage, Source: source, Mail: mail, Code: string(failure.Code),
		Reason: failure.Text("en").Headline, Attempts: d.delivered, At: now,
		Message: contract.Kept{
			Stream: string(d.Stream), Sequence: d.Sequence, Subject: d.Subject, Header: d.Header, Body: d.Body,
		},
	})
	if err != nil {
		return err
	}
	id := contract.EventID(mail, "dead-letter "+s.config.Stage+" "+string(d.Stream)+" "+
		strconv.FormatUint(d.Sequence, 10), 1)
	header := map[string]string{
		contract.HeaderSpecVersion: "1.0", contract.HeaderID: id, contract.HeaderType: contract.TypeDeadLetter,
		contract.HeaderSource: "/posthorn/" + s.config.Stage, contract.HeaderTime: now.Format(time.RFC3339Nano),
		contract.HeaderContentType: "application/json", contract.HeaderMail: mail,
	}
	for _, name := range []string{contract.HeaderTraceParent, contract.HeaderMessageID} {
		if value := d.Header[name]; value != "" {
			header[name] = value
		}
	}
	_, err = s.config.Publisher.Publish(ctx, Outgoing{Subject: subject, Header: header, Body: body, ID: id})
	if _, already := errors.AsType[*AlreadyStored](err); already {
		err = nil
	}
	if err == nil {
		s.log.Warn("message set aside as a dead letter", "sequence", d.Sequence, "source", source, "mail", mail,
			"error", failure)
	}
	return err
}

func (s *Subscriber) markKey(d *delivery) string {
	return s.config.Durable + "." + strconv.FormatUint(d.Sequence, 10)
}

// mark notes in the store that a message is about to run alone. It returns false when the message is not to be run: it
// was set aside, or given back because the store could not be asked.
func (s *Subscriber) mark(ctx context.Context, d *delivery) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attempt)
	defer cancel()
	deaths, err := s.deaths(ctx, d)
	if err == nil && deaths >= mostDeaths {
		err = s.setAside(d, fault.New(fault.MailCrashed, nil, nil))
		if err == nil {
			s.done(d)
			s.unmark(d)
			return false
		}
	} else if err == nil {
		_, err = s.quarantine.Put(ctx, s.markKey(d), strconv.AppendInt(nil, int64(deaths)+1, 10))
		if err != nil {
			s.count(d, deaths) // the mark may have been written although the message did not run
		}
	}
	if err != nil {
		s.log.Warn("message delivered again cannot be run alone yet", "sequence", d.Sequence, "error", err)
		s.tell(d, d.msg.NakWithDelay(s.config.Delay(d.delivered, err))) // it stays suspect
		return false
	}
	s.log.Info("message was delivered before and runs alone", "sequence", d.Sequence, "deaths", deaths)
	return true
}

// count keeps the number of deaths that this process knows better than the store.
func (s *Subscriber) count(d *delivery, deaths int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deathsKnown[s.markKey(d)] = deaths
}

// deaths reads how often the message ended a process while it ran alone.
func (s *Subscriber) deaths(ctx context.Context, d *delivery) (int, error) {
	s.mu.Lock()
	known, ok := s.deathsKnown[s.markKey(d)]
	s.mu.Unlock()
	if ok {
		return known, nil
	}
	entry, err := s.quarantine.Get(ctx, s.markKey(d))
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	deaths, err := strconv.Atoi(string(entry.Value))
	if err != nil {
		return 0, nil //nolint:nilerr // not our writing, so no death of ours
	}
	return deaths, nil
}

// unmark removes the mark: the message came back. When the store does not let it, this process knows better.
func (s *Subscriber) unmark(d *delivery) {
	ctx, cancel := context.WithTimeout(context.Background(), attempt)
	defer cancel()
	if err := s.quarantine.Erase(ctx, s.markKey(d)); err != nil {
		s.count(d, 0)
		s.log.Warn("mark of a message that ran alone not removed", "sequence", d.Sequence, "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.deathsKnown, s.markKey(d))
}
