package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"posthorn/pkg/contract"
)

// event is one message of a stream as a subscriber sees it.
type event struct {
	Subject  string
	Header   nats.Header
	Body     []byte
	Sequence uint64
	Stored   time.Time
}

// request is the body of an event of a contact request.
func (e event) request(t *testing.T) contract.ContactRequest {
	t.Helper()
	var r contract.ContactRequest
	if err := json.Unmarshal(e.Body, &r); err != nil {
		t.Fatalf("%s: %v", e.Subject, err)
	}
	return r
}

// broker is a plain connection to the program's NATS server.
type broker struct {
	t    *testing.T
	conn *nats.Conn
	js   jetstream.JetStream
}

func dial(t *testing.T, url string) *broker {
	t.Helper()
	conn, err := nats.Connect(url, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true))
	if err != nil {
		t.Fatalf("no connection to %s: %v", url, err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return &broker{t: t, conn: conn, js: js}
}

// broker connects to the running program.
func (p *program) broker() *broker {
	p.t.Helper()
	return dial(p.t, p.ready.NATS)
}

// count is how many messages of a stream match.
func (b *broker) count(stream contract.Stream, filter string) int {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	s, err := b.js.Stream(ctx, string(stream))
	if err != nil {
		b.t.Fatalf("stream %s: %v", stream, err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		b.t.Fatalf("stream %s: %v", stream, err)
	}
	n := uint64(0)
	for _, of := range info.State.Subjects {
		n += of
	}
	return int(n)
}

// read returns all messages of a stream that match, in order.
func (b *broker) read(stream contract.Stream, filter string) []event {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	n := b.count(stream, filter)
	if n == 0 {
		return nil
	}
	consumer, err := b.js.OrderedConsumer(ctx, string(stream), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{filter},
	})
	if err != nil {
		b.t.Fatalf("stream %s: %v", stream, err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		b.t.Fatal(err)
	}
	defer messages.Stop()
	var events []event
	for len(events) < n {
		message, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			b.t.Fatalf("stream %s after %d of %d messages: %v", stream, len(events), n, err)
		}
		data, err := message.Metadata()
		if err != nil {
			b.t.Fatal(err)
		}
		events = append(events, event{
			Subject: message.Subject(), Header: message.Headers(), Body: message.Data(), Sequence: data.Sequence.Stream,
			Stored: data.Timestamp,
		})
	}
	return events
}

// events are the events of the contact requests of a source.
func (b *broker) events(source string) []event {
	b.t.Helper()
	return b.read(contract.StreamContactRequests, contract.ContactRequestSubject("*", "*", source, ">"))
}

// awaitEvents waits until a source has made n events.
func (b *broker) awaitEvents(source string, n int, within time.Duration) {
	b.t.Helper()
	eventually(b.t, within, func() (bool, string) {
		got := b.count(contract.StreamContactRequests, contract.ContactRequestSubject("*", "*", source, ">"))
		return got >= n, fmt.Sprintf("%s has made %d events of %d", source, got, n)
	})
}

// oneEventEach fails the test unless every mail has made exactly one event, and nothing else has.
func (b *broker) oneEventEach(source string, mails [][]byte) []event {
	b.t.Helper()
	events := b.events(source)
	count := map[string]int{}
	for _, e := range events {
		name, _, _, key, err := contract.ContactRequestKeys(e.Subject)
		if err != nil {
			b.t.Errorf("%v", err)
		}
		if name != contract.EventReceived && name != contract.EventReplied {
			b.t.Errorf("%s is no event of a mail", e.Subject)
		}
		count[key]++
	}
	missing, doubled := 0, 0
	for i, raw := range mails {
		key := contract.MailKey(source, sha256.Sum256(raw))
		switch n := count[key]; {
		case n == 0:
			missing++
			if missing < 5 {
				b.t.Errorf("%s: mail %d has made no event (%s): %.60q", source, i, b.whereabouts(source, key), raw)
			}
		case n > 1:
			doubled++
			b.t.Errorf("%s: mail %d has made %d events", source, i, n)
		}
		delete(count, key)
	}
	if missing > 0 || doubled > 0 || len(count) > 0 {
		b.t.Errorf("%s: of %d mails %d have made no event and %d more than one; %d events are of other mails",
			source, len(mails), missing, doubled, len(count))
	}
	return events
}

// whereabouts tells how far a mail has come, for a test that fails.
func (b *broker) whereabouts(source, key string) string {
	var found []string
	if b.count(contract.StreamMail, contract.RawSubject(source, key)) > 0 {
		found = append(found, "stored raw")
	}
	for _, e := range b.read(contract.StreamDeadLetters, contract.DeadLetterSubject("*", source, key)) {
		var dead contract.DeadLetter
		if err := json.Unmarshal(e.Body, &dead); err == nil {
			found = append(found, fmt.Sprintf("set aside by the %s: %s %s", dead.Stage, dead.Code, dead.Reason))
		}
	}
	for _, filter := range []string{contract.ParsedSubject(source), contract.SkippedSubject(source)} {
		for _, e := range b.read(contract.StreamParsed, filter) {
			if strings.Contains(string(e.Body), key) {
				found = append(found, "in "+e.Subject)
			}
		}
	}
	if len(found) == 0 {
		return "never stored"
	}
	return strings.Join(found, ", ")
}

// keys are the keys of the mails that have made an event before a moment.
func keys(events []event, before time.Time) map[string]bool {
	found := map[string]bool{}
	for _, e := range events {
		if e.Stored.Before(before) {
			found[e.Subject[strings.LastIndexByte(e.Subject, '.')+1:]] = true
		}
	}
	return found
}

// ask makes a content request by hand, as the contract describes it.
func (b *broker) ask(subject string, body []byte) ([]byte, error) {
	b.t.Helper()
	inbox := b.conn.NewInbox()
	answers, err := b.conn.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answers.Unsubscribe() }() // the answer is there
	if err := answers.SetPendingLimits(-1, -1); err != nil {
		return nil, err
	}
	if err := b.conn.PublishRequest(subject, inbox, body); err != nil {
		return nil, err
	}
	var content []byte
	for {
		chunk, err := answers.NextMsg(soon)
		if err != nil {
			return nil, err
		}
		if code := chunk.Header.Get(contract.HeaderError); code != "" {
			return nil, errors.New(code)
		}
		content = append(content, chunk.Data...)
		if chunk.Header.Get(contract.HeaderLast) == "true" {
			return content, nil
		}
	}
}

// sameMails fails the test unless two sets of mails have the same bytes, in any order.
func sameMails(t *testing.T, where string, got, want [][]byte) {
	t.Helper()
	digests := func(mails [][]byte) []string {
		sums := make([]string, len(mails))
		for i, raw := range mails {
			sums[i] = fmt.Sprintf("%x", sha256.Sum256(raw))
		}
		slices.Sort(sums)
		return sums
	}
	if a, b := digests(got), digests(want); !slices.Equal(a, b) {
		missing := 0
		for _, sum := range b {
			if _, ok := slices.BinarySearch(a, sum); !ok {
				missing++
			}
		}
		t.Errorf("%s holds %d mails, want %d; %d of these are not there byte for byte", where, len(got), len(want), missing)
	}
}
