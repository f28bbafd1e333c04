package fetcher

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"posthorn/pkg/bus"
	"posthorn/pkg/bus/bustest"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/reply"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
)

// fakeInbox is an IMAP Inbox in memory.
type fakeInbox struct {
	mailbox.Session

	validity, next uint32
	mails          []fakeMail
	fetched        int
	sent           [][]byte
}

type fakeMail struct {
	uid uint32
	raw []byte
	at  time.Time
}

func (i *fakeInbox) deliver(at time.Time, raw string) uint32 {
	i.next++
	i.mails = append(i.mails, fakeMail{uid: i.next, raw: []byte(raw), at: at})
	return i.next
}

func (i *fakeInbox) take(uid uint32) {
	for n, m := range i.mails {
		if m.uid == uid {
			i.mails = append(i.mails[:n:n], i.mails[n+1:]...)
			return
		}
	}
}

func (i *fakeInbox) Status() mailbox.Status {
	return mailbox.Status{UIDValidity: i.validity, UIDNext: i.next + 1, Messages: len(i.mails)}
}

func (i *fakeInbox) List(context.Context) ([]mailbox.Entry, error) {
	var entries []mailbox.Entry
	for _, m := range i.mails {
		entries = append(entries, mailbox.Entry{UID: m.uid})
	}
	return entries, nil
}

func (i *fakeInbox) each(entries []mailbox.Entry, call func(mailbox.Entry, fakeMail) error) error {
	for _, e := range entries {
		for _, m := range i.mails {
			if m.uid == e.UID {
				if err := call(e, m); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (i *fakeInbox) Describe(_ context.Context, entries []mailbox.Entry) (infos []mailbox.Info, err error) {
	err = i.each(entries, func(e mailbox.Entry, m fakeMail) error {
		e.Size = int64(len(m.raw))
		infos = append(infos, mailbox.Info{Entry: e, InternalDate: m.at})
		return nil
	})
	return infos, err
}

func (i *fakeInbox) Headers(_ context.Context, entries []mailbox.Entry, each func(mailbox.Entry, []byte) error) error {
	return i.each(entries, func(e mailbox.Entry, m fakeMail) error {
		header, _ := reply.SplitHeader(m.raw)
		return each(e, header)
	})
}

func (i *fakeInbox) Fetch(
	_ context.Context, entries []mailbox.Entry, each func(mailbox.Entry, int64, io.Reader) error,
) error {
	return i.each(entries, func(e mailbox.Entry, m fakeMail) error {
		i.fetched++
		return each(e, int64(len(m.raw)), bytes.NewReader(m.raw))
	})
}

func (i *fakeInbox) Sent(
	_ context.Context, from mailbox.SentCursor, each func(mailbox.SentMail) error,
) (mailbox.SentCursor, error) {
	for n := int(from.Last); n < len(i.sent); n++ {
		if err := each(mailbox.SentMail{UID: uint32(n + 1), Header: i.sent[n]}); err != nil {
			return from, err
		}
	}
	if len(i.sent) == 0 {
		return from, fault.New(fault.MailboxNoSent, nil, nil)
	}
	return mailbox.SentCursor{Mailbox: "Sent", UIDValidity: 1, Last: uint32(len(i.sent))}, nil
}

// bench runs single cycles over a fake Inbox and a real broker, with a clock of its own and no other stage.
type bench struct {
	t     *testing.T
	conn  *bus.Conn
	inbox *fakeInbox
	clock time.Time
	drain *drain
}

func newBench(t *testing.T, change func(*source.Source)) *bench {
	t.Helper()
	b := &bench{
		t: t, conn: bustest.Start(t), inbox: &fakeInbox{validity: 7},
		clock: time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC),
	}
	log := slog.New(slog.DiscardHandler)
	f, err := New(Config{Instance: "test", SpoolDir: t.TempDir(), Now: func() time.Time { return b.clock }}, stage.Deps{
		Conn: b.conn, Publisher: b.conn.Publisher(), Metrics: prometheus.NewRegistry(), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := source.New()
	s.ID, s.Name, s.DefaultWorkflow, s.Address, s.Epoch = "sales", "Sales", "general", "sales@example.org", "e1"
	s.Revision = 1
	if change != nil {
		change(&s)
	}
	b.drain = &drain{fetcher: f, log: log, source: s, short: map[string]int{}, doubts: doubts{}}
	return b
}

// cycle does one complete cycle, as after a restart: the ledger is read from the store.
func (b *bench) cycle() tally {
	b.t.Helper()
	d := b.drain
	l, err := openLedger(b.t.Context(), d.fetcher.books, d.source.ID, d.source.Epoch)
	if err != nil {
		b.t.Fatal(err)
	}
	d.ledger = l
	c := &cycle{
		fetcher: d.fetcher, drain: d, log: d.log, session: b.inbox, source: d.source, ledger: l,
		lease: func() bool { return true }, nameless: map[int]*place{},
	}
	if err := d.resolveEvidence(b.t.Context(), c); err != nil {
		b.t.Fatal(err)
	}
	c.stamp = d.source.Stamp(d.evidence)
	counts, err := c.run(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	d.sentChanged = false
	return counts
}

// decide does what parser and router would: the event of a stored mail.
func (b *bench) decide(raw string) {
	b.t.Helper()
	key := contract.MailKey("sales", sha256Of(raw))
	out, err := bus.Event(contract.TypeReceived, contract.ContactRequestSubject("received", "general", "sales", key),
		contract.OpeningID(key), "sales", contract.ContactRequest{Event: "received", Mail: key, Request: key})
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.conn.Publisher().Publish(b.t.Context(), out); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) count(stream contract.Stream, filter string) uint64 {
	b.t.Helper()
	n, err := b.conn.Count(b.t.Context(), stream, filter)
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

func (b *bench) orders() uint64 {
	return b.count(contract.StreamDispositions, contract.DisposeSubject("sales"))
}

func letter(n int, header string) string {
	return fmt.Sprintf("Message-ID: <%d@example.net>\r\nSubject: Mail %d\r\n%s\r\nBody %d\r\n", n, n, header, n)
}

func TestAMailIsFetchedOnceAndAccountedForUntilItIsDecided(t *testing.T) {
	b := newBench(t, nil)
	b.inbox.deliver(b.clock, letter(1, ""))
	for range 3 {
		if got := b.cycle(); got.Waiting != 1 || got.Unaccounted != 0 || b.inbox.fetched != 1 {
			t.Fatalf("%+v, fetched %d times", got, b.inbox.fetched)
		}
	}
	b.decide(letter(1, ""))
	if got := b.cycle(); got.Waiting != 0 || got.Listed != 1 || got.Unaccounted != 0 {
		t.Errorf("%+v", got)
	}
}

func TestAStoredMailThatIsInNoStreamAnyMoreIsFetchedAgain(t *testing.T) {
	b := newBench(t, nil)
	b.inbox.deliver(b.clock, letter(1, ""))
	b.cycle()
	if err := b.conn.SecureDelete(t.Context(), contract.StreamMail, 1); err != nil {
		t.Fatal(err)
	}
	if got := b.cycle(); got.Waiting != 1 {
		t.Errorf("at once: %+v", got)
	}
	b.clock = b.clock.Add(lostAfter)
	if got := b.cycle(); got.Unaccounted != 1 {
		t.Errorf("after a while: %+v", got)
	}
	b.drain.source.Revision++ // the broker would take the same id for a repetition
	if got := b.cycle(); got.Waiting != 1 || b.inbox.fetched != 2 {
		t.Errorf("then: %+v, fetched %d times", got, b.inbox.fetched)
	}
}

func TestAMailThatShouldHaveLeftLongAgoIsOrderedAgain(t *testing.T) {
	b := newBench(t, nil)
	b.inbox.deliver(b.clock, letter(1, ""))
	b.cycle()
	b.decide(letter(1, ""))
	b.cycle()
	if n := b.orders(); n != 0 {
		t.Fatalf("%d orders by the fetcher while the router's may be on its way", n)
	}
	b.clock = b.clock.Add(orderAgainAfter)
	b.cycle()
	b.cycle()
	if n := b.orders(); n != 1 {
		t.Errorf("%d orders after a while", n)
	}
}

func TestAMailThatWasPutBackIsArchivedAgainAfterADay(t *testing.T) {
	b := newBench(t, nil)
	uid := b.inbox.deliver(b.clock, letter(1, ""))
	b.cycle()
	b.decide(letter(1, ""))
	b.cycle()
	b.inbox.take(uid)
	b.cycle()
	b.inbox.deliver(b.clock, letter(1, ""))
	for _, later := range []time.Duration{0, time.Hour, 22 * time.Hour} {
		b.clock = b.clock.Add(later)
		if got := b.cycle(); got.Left["put_back"] != 1 || b.orders() != 0 {
			t.Fatalf("%+v, %d orders", got, b.orders())
		}
	}
	b.clock = b.clock.Add(2 * time.Hour)
	if got := b.cycle(); got.Left["put_back"] != 0 || b.orders() != 1 {
		t.Errorf("%+v, %d orders", got, b.orders())
	}
	if n := b.count(contract.StreamContactRequests, ">"); n != 1 {
		t.Errorf("%d events of one mail", n)
	}
}

func TestAfterARenumberingMailsAreRecognisedByTheirBytes(t *testing.T) {
	b := newBench(t, nil)
	for n := range 5 {
		b.inbox.deliver(b.clock, letter(n, ""))
	}
	b.cycle()
	for n := range 5 {
		b.decide(letter(n, ""))
	}
	b.cycle()
	b.inbox.validity = 8
	for n := range b.inbox.mails {
		b.inbox.next++
		b.inbox.mails[n].uid = b.inbox.next
	}
	if got := b.cycle(); got.Unaccounted != 0 || got.Left["put_back"] != 0 || b.orders() != 5 {
		t.Errorf("%+v, %d orders for the new places of 5 mails", got, b.orders())
	}
	if n := b.count(contract.StreamMail, ">"); n != 5 {
		t.Errorf("%d raw mails of 5", n)
	}
	if n := b.count(contract.StreamSources, contract.SourceSubject("mailbox-reset", "sales")); n != 1 {
		t.Errorf("the renumbering was told %d times", n)
	}
}

func TestTheStartOfTheImportHoldsAndCanBeOpenedLater(t *testing.T) {
	b := newBench(t, nil)
	b.drain.source.Boundary = b.clock
	b.inbox.deliver(b.clock.Add(-time.Hour), letter(1, ""))
	b.inbox.deliver(b.clock.Add(time.Hour), letter(2, ""))
	if got := b.cycle(); got.Left["before_start"] != 1 || got.Waiting != 1 || b.inbox.fetched != 1 {
		t.Fatalf("%+v", got)
	}
	b.inbox.validity = 8 // the boundary is a time: it means the same after a renumbering
	if got := b.cycle(); got.Left["before_start"] != 1 {
		t.Errorf("renumbered: %+v", got)
	}
	b.drain.source.Boundary = time.Time{}
	b.drain.source.Revision++
	if got := b.cycle(); got.Left["before_start"] != 0 || got.Waiting != 2 {
		t.Errorf("opened: %+v", got)
	}
}

func TestAReplyWhoseSentCopyIsLateIsTakenInWhenItArrives(t *testing.T) {
	b := newBench(t, func(s *source.Source) { s.RepliesOnly = true })
	b.inbox.sent = [][]byte{[]byte("Message-ID: <known@example.org>\r\n")}
	b.inbox.deliver(b.clock, letter(1, "In-Reply-To: <late@example.org>\r\n"))
	b.inbox.deliver(b.clock, letter(2, "In-Reply-To: <known@example.org>\r\n"))
	b.inbox.deliver(b.clock, letter(3, ""))
	if got := b.cycle(); got.Left["unsure"] != 1 || got.Left["skipped"] != 1 || got.Waiting != 1 {
		t.Fatalf("%+v", got)
	}
	b.inbox.sent = append(b.inbox.sent, []byte("Message-ID: <late@example.org>\r\n"))
	b.clock = b.clock.Add(time.Duration(b.drain.source.PollInterval))
	if got := b.cycle(); got.Left["unsure"] != 0 || got.Waiting != 2 || b.inbox.fetched != 2 {
		t.Errorf("%+v, fetched %d", got, b.inbox.fetched)
	}
	if n := b.count(contract.StreamParsed, contract.SkippedSubject("sales")); n != 2 {
		t.Errorf("%d receipts of 2 mails that were left", n)
	}
}

func TestWhatTheParserHasLeftIsWantedAgainWhenTheRuleIsOff(t *testing.T) {
	b := newBench(t, func(s *source.Source) { s.RepliesOnly = true })
	b.inbox.sent = [][]byte{[]byte("Message-ID: <known@example.org>\r\n")}
	raw := letter(1, "In-Reply-To: <known@example.org>\r\n")
	b.inbox.deliver(b.clock, raw)
	b.cycle()
	key := contract.MailKey("sales", sha256Of(raw))
	decision, err := json.Marshal(contract.Skipped{Verdict: reply.MachineMail, Revision: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bustest.Bucket(t, b.conn, bus.BucketSkipped).Put(t.Context(), "sales."+key, decision); err != nil {
		t.Fatal(err)
	}
	if err := b.conn.SecureDelete(t.Context(), contract.StreamMail, 1); err != nil {
		t.Fatal(err)
	}
	if got := b.cycle(); got.Left["skipped"] != 1 || b.inbox.fetched != 1 {
		t.Fatalf("%+v", got)
	}
	b.drain.source.RepliesOnly = false
	b.drain.source.Revision++
	if got := b.cycle(); got.Waiting != 1 || b.inbox.fetched != 2 {
		t.Errorf("%+v, fetched %d times", got, b.inbox.fetched)
	}
	if n := b.count(contract.StreamMail, contract.RawSubject("sales", key)); n != 1 {
		t.Error("its bytes are not stored again")
	}
}

// cutting is a session whose server ends every wait by ending the connection.
type cutting struct{ mailbox.Session }

func (cutting) Wait(context.Context, time.Duration) error {
	return fault.New(fault.ProtocolClosed, nil, nil)
}
func (cutting) Close() error { return nil }

func TestAServerThatEndsEveryWaitIsNotSignedInToWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &drain{log: slog.New(slog.DiscardHandler)}
		began := time.Now()
		for n := range 10 {
			d.session = &stage.Session{Session: cutting{}}
			if !d.pause(t.Context(), time.Minute) {
				t.Fatal("stopped")
			}
			if took := time.Since(began); n == 0 && took > 0 {
				t.Errorf("one mishap was waited for: %s", took)
			}
		}
		if took := time.Since(began); took < 4*time.Minute || took > 10*time.Minute {
			t.Errorf("ten sign-ins within %s", took)
		}
		d.session = &stage.Session{Session: quiet{}}
		if !d.pause(t.Context(), time.Minute) || d.cuts != 0 {
			t.Errorf("a wait that was not cut left %d cuts", d.cuts)
		}
	})
}

// quiet is a session in whose mailbox nothing happens.
type quiet struct{ mailbox.Session }

func (quiet) Wait(_ context.Context, d time.Duration) error {
	<-time.After(d)
	return nil
}

// restless is a session whose server tells of changes without end.
type restless struct{ mailbox.Session }

func (restless) Wait(context.Context, time.Duration) error { return nil }

func TestAServerThatTellsOfChangesWithoutEndIsNotListedWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &drain{log: slog.New(slog.DiscardHandler), session: &stage.Session{Session: restless{}}}
		began := time.Now()
		for n := range 25 {
			if !d.pause(t.Context(), time.Minute) {
				t.Fatal("stopped")
			}
			if took := time.Since(began); n == 0 && took > 0 {
				t.Errorf("a change was waited with: %s", took)
			}
		}
		if took := time.Since(began); took < 15*time.Second || took > 25*time.Second {
			t.Errorf("25 changes within %s", took)
		}
	})
}

func TestARetryTriesMailsThatRestAtOnce(t *testing.T) {
	b := newBench(t, nil)
	uid := b.inbox.deliver(b.clock, letter(1, ""))
	id := placeID(b.inbox.validity, uid, "", int64(len(letter(1, ""))))
	why := fault.New(fault.ProtocolClosed, nil, nil)
	b.drain.doubts[id] = &doubt{times: mostDoubts, last: b.clock, why: why}
	if counts := b.cycle(); counts.Unaccounted != 1 || b.inbox.fetched != 0 {
		t.Fatalf("%+v, %d fetched", counts, b.inbox.fetched)
	}
	b.drain.adopt(b.drain.source)
	if counts := b.cycle(); counts.Unaccounted != 0 || b.inbox.fetched != 1 {
		t.Errorf("%+v, %d fetched", counts, b.inbox.fetched)
	}
}

func TestTheOnlyConnectionOfAnAccountIsLeftToTheArchiver(t *testing.T) {
	b := newBench(t, nil)
	if b.drain.crowded(t.Context()) {
		t.Error("crowded before anybody was refused")
	}
	say := func(state source.State) {
		t.Helper()
		if err := b.drain.fetcher.archived.Put(t.Context(), "sales", state); err != nil {
			t.Fatal(err)
		}
	}
	refused := fault.New(fault.LimitConnections, nil, nil)
	say(source.State{State: source.StateDegraded, Error: source.NewStateError(refused, b.clock)})
	if !b.drain.crowded(t.Context()) {
		t.Error("not crowded though the archiver has no connection left")
	}
	say(source.State{State: source.StateOK})
	if !b.drain.crowded(t.Context()) {
		t.Error("the connection is kept again as soon as the archiver had one")
	}
	b.drain.adopt(b.drain.source)
	if b.drain.crowded(t.Context()) {
		t.Error("still crowded after the settings changed")
	}
}

func TestAnotherMailUnderAKnownUIDIsTakenIn(t *testing.T) {
	t.Run("the server was set back", func(t *testing.T) {
		b := newBench(t, func(s *source.Source) { s.AfterFetch = contract.Leave })
		b.inbox.deliver(b.clock, letter(1, ""))
		last := b.inbox.deliver(b.clock, letter(2, ""))
		b.cycle()
		b.decide(letter(1, ""))
		b.decide(letter(2, ""))
		b.cycle()
		b.inbox.take(last)
		b.inbox.next--
		b.cycle()
		b.inbox.deliver(b.clock, letter(3, "")) // gets the UID that mail 2 had
		if got := b.cycle(); got.Waiting != 1 || b.inbox.fetched != 3 {
			t.Errorf("%+v, fetched %d times", got, b.inbox.fetched)
		}
	})
	t.Run("between two cycles", func(t *testing.T) {
		b := newBench(t, func(s *source.Source) { s.AfterFetch = contract.Leave })
		b.inbox.deliver(b.clock, letter(1, ""))
		b.inbox.deliver(b.clock, letter(2, ""))
		last := b.inbox.deliver(b.clock, letter(3, ""))
		b.cycle()
		for n := range 4 {
			b.decide(letter(n, ""))
		}
		b.cycle()
		b.inbox.take(last)
		b.inbox.take(last - 1)
		b.inbox.next -= 2
		b.inbox.deliver(b.clock, letter(4, "")) // gets the UID that mail 2 had; UIDNEXT tells
		if got := b.cycle(); got.Waiting != 1 || got.Unaccounted != 0 {
			t.Errorf("%+v", got)
		}
	})
	t.Run("nothing tells but that it does not go away", func(t *testing.T) {
		b := newBench(t, nil)
		uid := b.inbox.deliver(b.clock, letter(1, ""))
		b.cycle()
		b.decide(letter(1, ""))
		b.cycle()
		b.inbox.mails[0] = fakeMail{uid: uid, raw: []byte(letter(2, "")), at: b.clock}
		b.clock = b.clock.Add(orderAgainAfter)
		b.cycle()
		if got := b.cycle(); got.Waiting != 1 || b.orders() != 0 {
			t.Errorf("%+v, %d orders", got, b.orders())
		}
	})
}
