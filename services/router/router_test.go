package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"posthorn/pkg/bus"
	"posthorn/pkg/bus/bustest"
	"posthorn/pkg/contract"
	"posthorn/pkg/stage"
)

// room is a running router.
type room struct {
	t      *testing.T
	conn   *bus.Conn
	routed int
}

func start(t *testing.T) *room {
	t.Helper()
	conn := bustest.Start(t)
	router, err := New(Config{Instance: "test", Workers: 1}, stage.Deps{
		Conn: conn, Publisher: conn.Publisher(), Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx, func() {}) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return &room{t: t, conn: conn}
}

// parsed is a mail as the parser hands it on.
func parsed(key, messageID string, change func(*contract.ParsedMail)) contract.ParsedMail {
	p := contract.ParsedMail{
		Mail: key,
		Stamp: contract.Stamp{
			Source: contract.SourceRef{ID: "sales", Name: "Sales"}, Revision: 1, Epoch: "e1", Workflow: "sales",
			Disposition: contract.Archive,
		},
		Place: contract.Place{Epoch: "e1", Protocol: "imap", UIDValidity: 7, UID: 1, Size: 10},
		Content: contract.Content{
			ReceivedAt: time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC), MessageID: messageID, Subject: "Enquiry",
			Parse: contract.Parse{Status: "ok"}, Raw: contract.Raw{Size: 10, SHA256: "00", Stream: "MAIL", Sequence: 1},
		},
	}
	if change != nil {
		change(&p)
	}
	return p
}

// route puts parsed mails before the router and waits until all are done: it takes them in order, and one more behind
// them.
func (r *room) route(mails ...contract.ParsedMail) {
	r.t.Helper()
	r.routed++
	last := fmt.Sprintf("last-%d", r.routed)
	mails = append(mails, parsed(last, "", func(p *contract.ParsedMail) { p.Stamp.Disposition = contract.Leave }))
	for n, p := range mails {
		source := p.Stamp.Source.ID
		out, err := bus.Event(contract.TypeParsed, contract.ParsedSubject(source),
			fmt.Sprintf("%s-%d-%d", p.Mail, r.routed, n), source, p)
		if err != nil {
			r.t.Fatal(err)
		}
		if _, err := r.conn.Publisher().Publish(r.t.Context(), out); err != nil {
			r.t.Fatal(err)
		}
	}
	r.await(contract.StreamContactRequests, contract.ContactRequestFilter("sales", last))
}

// await waits until a subject has a message.
func (r *room) await(stream contract.Stream, subject string) {
	r.t.Helper()
	deadline := time.After(time.Minute)
	for {
		_, err := r.conn.Last(r.t.Context(), stream, subject)
		if err == nil {
			return
		}
		if !errors.Is(err, bus.ErrNotFound) {
			r.t.Fatal(err)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			r.t.Fatalf("nothing on %s within a minute", subject)
		}
	}
}

// event reads the one event of a mail.
func (r *room) event(key string) contract.ContactRequest {
	r.t.Helper()
	last, err := r.conn.Last(r.t.Context(), contract.StreamContactRequests, contract.ContactRequestFilter("sales", key))
	if err != nil {
		r.t.Fatalf("event of %s: %v", key, err)
	}
	if last.Header[contract.HeaderID] != contract.OpeningID(key) || last.Header[contract.HeaderMsgID] != last.Header[contract.HeaderID] {
		r.t.Errorf("ids of %s: %v", key, last.Header)
	}
	var event contract.ContactRequest
	if err := json.Unmarshal(last.Body, &event); err != nil {
		r.t.Fatal(err)
	}
	return event
}

func (r *room) count(stream contract.Stream, filter string) uint64 {
	r.t.Helper()
	n, err := r.conn.Count(r.t.Context(), stream, filter)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

func answers(ids ...string) func(*contract.ParsedMail) {
	return func(p *contract.ParsedMail) { p.InReplyTo = ids }
}

func TestAMailMakesOneEventHoweverOftenItComesAndWhateverHasChanged(t *testing.T) {
	r := start(t)
	mail := parsed("one", "<1@example.net>", nil)
	moved := parsed("one", "<1@example.net>", func(p *contract.ParsedMail) {
		p.Stamp.Workflow = "support"
		p.Place.UID = 2
	})
	asReply := parsed("one", "<1@example.net>", answers("<other@example.net>"))
	r.route(parsed("other", "<other@example.net>", nil), mail, mail, moved, asReply)
	if n := r.count(contract.StreamContactRequests, contract.ContactRequestFilter("sales", "one")); n != 1 {
		t.Errorf("%d events", n)
	}
	if event := r.event("one"); event.Event != contract.EventReceived || event.Workflow != "sales" || event.Revision != 1 {
		t.Errorf("%+v", event)
	}
	if n := r.count(contract.StreamDispositions, contract.DisposeSubject("sales")); n != 3 {
		t.Errorf("%d orders for the places of two mails, three in all", n)
	}
}

func TestAMailJoinsTheRequestThatItAnswers(t *testing.T) {
	r := start(t)
	sent := bustest.Bucket(t, r.conn, bus.BucketSentIndex)
	record := fmt.Sprintf(`{"answers":[%q]}`, contract.MessageIDKey("sales", "<first@example.net>"))
	key := "sales." + contract.MessageIDKey("sales", "<our-answer@example.org>")
	if _, err := sent.Put(t.Context(), key, []byte(record)); err != nil {
		t.Fatal(err)
	}
	machine := func(p *contract.ParsedMail) {
		p.InReplyTo, p.Machine = []string{"<first@example.net>"}, "auto-reply"
	}
	r.route(
		parsed("first", "<first@example.net>", nil),
		parsed("second", "<second@example.net>", answers("<first@example.net>")),
		parsed("third", "<third@example.net>", func(p *contract.ParsedMail) {
			p.References = []string{"<unknown@example.net>", "<second@EXAMPLE.NET>", "<gone@example.net>"}
		}),
		parsed("fourth", "<fourth@example.net>", answers("<our-answer@example.org>")),
		parsed("machine", "<machine@example.net>", machine),
		parsed("empty", "", answers("", "<>")),
		parsed("empty-too", "", answers("<>")),
		parsed("stranger", "<stranger@example.net>", answers("<nobody@example.net>")),
	)
	for _, joined := range []string{"second", "third", "fourth"} {
		event := r.event(joined)
		if event.Event != contract.EventReplied || event.Request != "first" || event.Mail != joined ||
			event.Conversation != (contract.Conversation{ID: "first"}) {
			t.Errorf("%s: %+v", joined, event)
		}
	}
	for _, alone := range []string{"first", "machine", "empty", "empty-too", "stranger"} {
		event := r.event(alone)
		if event.Event != contract.EventReceived || event.Request != alone || !event.Conversation.New {
			t.Errorf("%s: %+v", alone, event)
		}
	}
}

func TestAStrangerWhoRepeatsAMessageIDDoesNotDrawItsAnswers(t *testing.T) {
	r := start(t)
	r.route(parsed("first", "<same@example.net>", nil), parsed("stranger", "<same@example.net>", nil),
		parsed("answer", "<answer@example.net>", answers("<same@example.net>")))
	if event := r.event("answer"); event.Request != "first" {
		t.Errorf("joined %s", event.Request)
	}
	threads := bustest.Bucket(t, r.conn, bus.BucketThreads)
	key := "sales." + contract.MessageIDKey("sales", "<same@example.net>")
	if _, err := threads.Get(t.Context(), key+".stranger"); err != nil {
		t.Errorf("the stranger's mail is not found by its Message-ID: %v", err)
	}
}

func TestNothingIsOrderedForMailThatIsToBeLeft(t *testing.T) {
	r := start(t)
	r.route(
		parsed("leave", "", func(p *contract.ParsedMail) { p.Stamp.Disposition = contract.Leave }),
		parsed("pop", "", func(p *contract.ParsedMail) { p.Place.Protocol = "pop3" }),
	)
	if n := r.count(contract.StreamDispositions, contract.DisposeSubject("sales")); n != 0 {
		t.Errorf("%d orders", n)
	}
	r.route(parsed("pop-delete", "", func(p *contract.ParsedMail) {
		p.Place.Protocol, p.Stamp.Disposition = "pop3", contract.Delete
	}))
	if n := r.count(contract.StreamDispositions, contract.DisposeSubject("sales")); n != 1 {
		t.Errorf("%d orders", n)
	}
}

func TestAMessageThatIsNoParsedMailIsSetAside(t *testing.T) {
	r := start(t)
	out := bus.Outgoing{
		Subject: contract.ParsedSubject("sales"), ID: "broken", Body: []byte("{"),
		Header: map[string]string{contract.HeaderMail: "broken"},
	}
	if _, err := r.conn.Publisher().Publish(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	r.route(parsed("one", "", nil))
	if r.event("one").Mail != "one" {
		t.Error("the mail behind it was held up")
	}
	r.await(contract.StreamDeadLetters, contract.DeadLetterSubject("router", "sales", "broken"))
}
