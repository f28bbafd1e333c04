package bus

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go/jetstream"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

func TestAMailMakesOneEventHoweverManyPublishItUnderWhateverWorkflow(t *testing.T) {
	conn := provisioned(t)
	const mails, writers = 200, 4
	var stored, already atomic.Int64
	var wait sync.WaitGroup
	for w := range writers {
		for m := range mails {
			mail := fmt.Sprintf("mail%d", m)
			wait.Go(func() {
				event := []string{contract.EventReceived, contract.EventReplied}[w%2]
				_, err := conn.Publisher().Publish(t.Context(), Outgoing{
					Subject: contract.ContactRequestSubject(event, "workflow"+strconv.Itoa(w), "sales", mail),
					Body:    []byte(mail), ID: contract.OpeningID(mail),
					Once: contract.ContactRequestFilter("sales", mail),
				})
				switch {
				case err == nil:
					stored.Add(1)
				case isAlreadyStored(err):
					already.Add(1)
				default:
					t.Error(err)
				}
			})
		}
	}
	wait.Wait()
	if got := count(t, conn, contract.StreamContactRequests); got != mails {
		t.Errorf("%d events for %d mails", got, mails)
	}
	if stored.Load()+already.Load() != mails*writers {
		t.Errorf("%d stored and %d already stored of %d", stored.Load(), already.Load(), mails*writers)
	}
	conn.publisher.mu.Lock()
	defer conn.publisher.mu.Unlock()
	if conn.publisher.batches+conn.publisher.refused == 0 {
		t.Error("no batch was tried, so nothing was tested about them")
	}
}

func TestTheSequenceOfEachMessageOfABatchIsItsOwn(t *testing.T) {
	conn := provisioned(t)
	var wait sync.WaitGroup
	for i := range 300 {
		wait.Go(func() {
			subject := contract.SourceSubject(contract.SourceState, fmt.Sprintf("s%d", i))
			ack, err := conn.Publisher().Publish(t.Context(), Outgoing{Subject: subject, Body: []byte(subject)})
			if err != nil {
				t.Error(err)
				return
			}
			got, err := conn.Get(t.Context(), contract.StreamSources, ack.Sequence)
			if err != nil || got.Subject != subject || string(got.Body) != subject {
				t.Errorf("at %d is %v, %v; want %s", ack.Sequence, got, err, subject)
			}
		})
	}
	wait.Wait()
	conn.publisher.mu.Lock()
	defer conn.publisher.mu.Unlock()
	if conn.publisher.batches == 0 {
		t.Error("no batch was made, so nothing was tested about them")
	}
}

func TestABatchThatIsRefusedForOneMessageStoresTheOthers(t *testing.T) {
	conn := provisioned(t)
	publisher := NewPublisher(conn, PublisherConfig{BatchFrom: 2})
	raw := func(i int) Outgoing {
		subject := contract.RawSubject("sales", fmt.Sprintf("mail%d", i))
		return Outgoing{Subject: subject, Body: []byte("x"), ID: fmt.Sprintf("id%d", i), Once: subject}
	}
	first, err := publisher.Publish(t.Context(), raw(7))
	if err != nil {
		t.Fatal(err)
	}
	q := publisher.queue(contract.StreamMail)
	var entries []*entry
	for i := range 20 {
		entries = append(entries, &entry{out: raw(i), done: make(chan struct{})})
	}
	if publisher.batch(entries, q) {
		t.Fatal("a batch with a stored mail was taken")
	}
	if got := count(t, conn, contract.StreamMail); got != 1 {
		t.Fatalf("the refused batch stored %d", got-1)
	}
	singly(publisher, entries)
	for i, e := range entries {
		<-e.done
		if i == 7 {
			if errCode(e.err) != codeWrongLastSequence || lastNumber(e.err) != first.Sequence {
				t.Errorf("the mail that was there: %v", e.err)
			}
		} else if e.err != nil {
			t.Errorf("mail %d: %v", i, e.err)
		}
	}
	if got := count(t, conn, contract.StreamMail); got != 20 {
		t.Errorf("%d mails stored, want 20", got)
	}
	_, err = publisher.Publish(t.Context(), raw(7))
	if already, ok := errors.AsType[*AlreadyStored](err); !ok || already.Sequence != first.Sequence {
		t.Errorf("again: %v, want already stored at %d", err, first.Sequence)
	}
}

func TestAFullStreamIsNeverTakenForAlreadyStored(t *testing.T) {
	conn := connected(t, store(t))
	if _, err := conn.Provision(t.Context(), ProvisionConfig{MaxBytes: 200 << 10}); err != nil {
		t.Fatal(err)
	}
	body := bytes.Repeat([]byte("x"), 64<<10)
	var err error
	storedBefore := 0
	for i := range 10 {
		subject := contract.RawSubject("sales", fmt.Sprintf("mail%d", i))
		if _, err = conn.Publisher().Publish(t.Context(), Outgoing{Subject: subject, Body: body, Once: subject}); err != nil {
			break
		}
		storedBefore++
	}
	if fault.CodeOf(err) != fault.StoreFull || isAlreadyStored(err) {
		t.Errorf("error of a full stream: %v", err)
	}
	if fault.Permanent(err) {
		t.Error("a full stream is a permanent error")
	}
	var many []Outgoing
	for i := range 60 {
		subject := contract.RawSubject("full", fmt.Sprintf("mail%d", i))
		many = append(many, Outgoing{Subject: subject, Body: body, Once: subject})
	}
	if err := conn.Publisher().PublishAll(t.Context(), many); fault.CodeOf(err) != fault.StoreFull {
		t.Errorf("error of batches into a full stream: %v", err)
	}
	if got := count(t, conn, contract.StreamMail); got != uint64(storedBefore) { //nolint:gosec // small
		t.Errorf("%d stored, %d acknowledged", got, storedBefore)
	}
}

func TestASubjectThatIsTakenIsAlreadyStoredOnlyAfterALook(t *testing.T) {
	conn := provisioned(t)
	subject := contract.RawSubject("sales", "mail")
	first := publish(t, conn, subject, "x")
	_, err := conn.Publisher().Publish(t.Context(), Outgoing{Subject: subject, Body: []byte("y")}) // no Once: error 10077
	if already, ok := errors.AsType[*AlreadyStored](err); !ok || already.Sequence != first.Sequence {
		t.Errorf("%v, want already stored at %d", err, first.Sequence)
	}
}

func TestAMessageThatMustFollowAnotherIsAConflictWhenSomethingCameBetween(t *testing.T) {
	conn := provisioned(t)
	filter := contract.ContactRequestFilter("sales", "mail")
	subject := contract.ContactRequestSubject(contract.EventRevised, "w", "sales", "mail")
	first := publish(t, conn, contract.ContactRequestSubject(contract.EventReceived, "w", "sales", "mail"), "1")
	after := func(sequence uint64) error {
		_, err := conn.Publisher().Publish(t.Context(), Outgoing{
			Subject: subject, ID: fmt.Sprint("after", sequence), After: &After{Filter: filter, Sequence: sequence},
		})
		return err
	}
	if err := after(first.Sequence); err != nil {
		t.Error(err)
	}
	if err := after(first.Sequence); fault.CodeOf(err) != fault.StoreConflict {
		t.Errorf("second: %v, want store.conflict", err)
	}
}

func TestTheSameIDIsADuplicateWithItsSequence(t *testing.T) {
	conn := provisioned(t)
	out := Outgoing{Subject: contract.ParsedSubject("sales"), Body: []byte("x"), ID: "one"}
	first, err := conn.Publisher().Publish(t.Context(), out)
	if err != nil {
		t.Fatal(err)
	}
	again, err := conn.Publisher().Publish(t.Context(), out)
	if err != nil || !again.Duplicate || again.Sequence != first.Sequence {
		t.Errorf("again: %+v, %v", again, err)
	}
}

func TestPublishingWaitsForABrokerThatRestarts(t *testing.T) {
	server := store(t)
	conn := connected(t, server)
	if _, err := conn.Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	var failed atomic.Int64
	var wait sync.WaitGroup
	for i := range 200 {
		wait.Go(func() {
			subject := contract.RawSubject("sales", fmt.Sprintf("mail%d", i))
			_, err := conn.Publisher().Publish(t.Context(), Outgoing{
				Subject: subject, Body: []byte(subject), ID: subject, Once: subject,
			})
			if err != nil {
				t.Log(err)
				failed.Add(1)
			}
		})
		if i == 100 {
			if err := server.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	wait.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d publishes failed over a restart", failed.Load())
	}
	if got := count(t, conn, contract.StreamMail); got != 200 {
		t.Errorf("%d stored, want 200", got)
	}
}

func TestAStreamThatTakesNoBatchesGetsSingles(t *testing.T) {
	conn := connected(t, store(t))
	_, err := conn.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "PLAIN", Subjects: []string{"plain.>"}})
	if err != nil {
		t.Fatal(err)
	}
	var all []Outgoing
	for i := range 100 {
		all = append(all, Outgoing{Subject: fmt.Sprintf("plain.%d", i)})
	}
	if err := conn.Publisher().PublishAll(t.Context(), all); err != nil {
		t.Error(err)
	}
	if got := count(t, conn, "PLAIN"); got != 100 {
		t.Errorf("%d stored, want 100", got)
	}
}

func TestWatermillPublishesMetadataAsHeadersAndCountsAlreadyStoredAsDone(t *testing.T) {
	conn := provisioned(t)
	publisher := conn.Publisher().Watermill()
	subject := contract.RawSubject("sales", "mail")
	for range 2 {
		msg := message.NewMessage("the-id", []byte("body"))
		msg.Metadata.Set(contract.HeaderType, contract.TypeRaw)
		msg.Metadata.Set(MetaSubject, "not published")
		if err := publisher.Publish(subject, msg); err != nil {
			t.Fatal(err)
		}
	}
	if err := publisher.Close(); err != nil {
		t.Error(err)
	}
	stored, err := conn.Last(t.Context(), contract.StreamMail, subject)
	if err != nil {
		t.Fatal(err)
	}
	if stored.Header[contract.HeaderType] != contract.TypeRaw || stored.Header[contract.HeaderMsgID] != "the-id" ||
		stored.Header[MetaSubject] != "" || string(stored.Body) != "body" {
		t.Errorf("stored: %+v", stored)
	}
}

func TestNoMessageOfABatchTouchesWhatAnotherExpectsSomethingOf(t *testing.T) {
	once := func(subject, filter, id string) Outgoing { return Outgoing{Subject: subject, Once: filter, ID: id} }
	rollup := Outgoing{Subject: "b", Header: map[string]string{jetstream.MsgRollup: jetstream.MsgRollupSubject}}
	for name, test := range map[string]struct {
		first, second Outgoing
		together      bool
	}{
		"different mails":       {once("a.b.1", "a.*.1", "1"), once("a.b.2", "a.*.2", "2"), true},
		"same mail, other ids":  {once("a.b.1", "a.*.1", "1"), once("a.c.1", "a.*.1", "2"), false},
		"same id":               {Outgoing{Subject: "a", ID: "1"}, Outgoing{Subject: "b", ID: "1"}, false},
		"no expectation at all": {Outgoing{Subject: "a"}, Outgoing{Subject: "a"}, true},
		"expected after":        {Outgoing{Subject: "a"}, Outgoing{Subject: "a", After: &After{}}, false},
		"expected before":       {Outgoing{Subject: "a", After: &After{}}, Outgoing{Subject: "a"}, false},
		"open filter":           {Outgoing{Subject: "a"}, Outgoing{Subject: "b.c", Once: "b.*"}, false},
		"rollup":                {Outgoing{Subject: "a"}, rollup, false},
		"too many bytes":        {Outgoing{Body: make([]byte, 60)}, Outgoing{Body: make([]byte, 60)}, false},
	} {
		load := batchLoad{touched: map[string]struct{}{}, expected: map[string]struct{}{}}
		if !load.add(&test.first, 100) {
			t.Errorf("%s: the first was not taken", name)
		}
		if got := load.add(&test.second, 100); got != test.together {
			t.Errorf("%s: together = %v", name, got)
		}
	}
}

// BenchmarkGroupCommit compares 64 publishers with and without batches, interleaved, and reports messages per second of
// both, their ratio, and how many messages a batch had.
func BenchmarkGroupCommit(b *testing.B) {
	conn := provisioned(b)
	body := bytes.Repeat([]byte("x"), 4<<10)
	const publishers, each = 64, 20
	number := 0
	round := func(p *Publisher) time.Duration {
		number++
		began := time.Now()
		var wait sync.WaitGroup
		for g := range publishers {
			wait.Go(func() {
				for i := range each {
					mail := fmt.Sprintf("m%d-%d-%d", number, g, i)
					_, err := p.Publish(b.Context(), Outgoing{
						Subject: contract.ContactRequestSubject(contract.EventReceived, "w", "sales", mail), Body: body,
						ID: contract.OpeningID(mail), Once: contract.ContactRequestFilter("sales", mail),
					})
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wait.Wait()
		return time.Since(began)
	}
	singles, batches := NewPublisher(conn, PublisherConfig{BatchMax: 1}), NewPublisher(conn, PublisherConfig{})
	var alone, grouped time.Duration
	rounds := 0
	for b.Loop() {
		alone += round(singles)
		grouped += round(batches)
		rounds++
	}
	total := float64(rounds * publishers * each)
	b.ReportMetric(total/alone.Seconds(), "singles/s")
	b.ReportMetric(total/grouped.Seconds(), "batched/s")
	b.ReportMetric(alone.Seconds()/grouped.Seconds(), "ratio")
	b.ReportMetric(float64(batches.batched)/float64(max(batches.batches, 1)), "msgs/batch")
}

func TestAMissingStreamIsNamed(t *testing.T) {
	conn := connected(t, store(t))
	_, err := conn.Publisher().Publish(t.Context(), Outgoing{Subject: contract.RawSubject("sales", "mail")})
	failure := fault.As(err)
	if failure == nil || failure.Code != fault.StoreMissing || failure.Params["what"] != "the stream MAIL" {
		t.Errorf("%v, %v", err, failure)
	}
	err = conn.Follow(t.Context(), contract.StreamMail, FollowOptions{}, func(Stored) error { return nil })
	if fault.CodeOf(err) != fault.StoreMissing {
		t.Errorf("following: %v", err)
	}
}
