package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/source"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares with a file under testdata; go test -update writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// printer is a program that only prints, at noon.
func printer() (*program, *bytes.Buffer) {
	var out bytes.Buffer
	return &program{out: &out, err: &out, now: func() time.Time { return noon }, zone: time.UTC}, &out
}

// offices are four sources in four states.
func offices() []shownSource {
	refused := fault.New(fault.AuthRejected, nil, nil)
	archive := fault.New(fault.ArchiveRefused, nil, fault.Params{"mailbox": "Archive"})
	make := func(id, name string, change func(*shownSource)) shownSource {
		s := source.New()
		s.ID, s.Name, s.DefaultWorkflow, s.Address = id, name, "sales", id+"@example.org"
		s.Server, s.Port, s.Username = "mail.example.org", 993, id+"@example.org"
		s.Epoch, s.CreatedAt, s.Revision = "abcdefghij234567", noon.Add(-48*time.Hour), 7
		shown := shownSource{Source: s, Auth: s.Auth.Type, Shard: contract.Shard(id), Revision: s.Revision}
		shown.State = source.State{ID: id, Name: name, State: source.StateOK, LastCycle: noon.Add(-20 * time.Second)}
		change(&shown)
		return shown
	}
	return []shownSource{
		make("bills", "Laskut", func(s *shownSource) {
			s.State.Counts = source.Counts{Inbox: 12, Left: 12, LeftBy: map[string]int{"skipped": 10, "unsure": 2}}
			s.RepliesOnly = true
			s.State.Notes = []string{"every mail that answers some mail counts as a reply: no Sent mailbox was found"}
		}),
		make("info", "Info", func(s *shownSource) {
			s.State.State = source.StateDegraded
			s.State.Error = source.NewStateError(archive, noon.Add(-time.Hour))
			s.State.Counts = source.Counts{Inbox: 3, Waiting: 1}
		}),
		make("old", "Vanha", func(s *shownSource) {
			s.Type, s.Port, s.SSL, s.AfterFetch = mailbox.POP3, 110, false, contract.Delete
			s.State.State, s.State.PausedBy, s.State.Since = source.StatePaused, "liisa", noon.Add(-50*time.Hour)
		}),
		make("sales", "Myynti", func(s *shownSource) {
			s.State.State = source.StateFailing
			s.State.Error = source.NewStateError(refused, noon.Add(-26*time.Hour))
			s.State.LastCycle, s.State.NextTry = noon.Add(-27*time.Hour), noon.Add(10*time.Minute)
		}),
	}
}

func TestTheListNamesTheReasonUnderEveryRowThatNeedsSomebody(t *testing.T) {
	p, out := printer()
	if err := p.printSources(offices()); err != nil {
		t.Fatal(err)
	}
	golden(t, "sources-list", out.Bytes())
}

func TestEverythingAboutASourceIsShownButItsPassword(t *testing.T) {
	p, out := printer()
	for _, s := range offices() {
		if err := p.printSource(s); err != nil {
			t.Fatal(err)
		}
		if err := p.printf("\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.printJSON(offices()[0]); err != nil {
		t.Fatal(err)
	}
	golden(t, "sources-show", out.Bytes())
}

// statusOf is a status of the sources.
func statusOf(shown []shownSource) status {
	s := status{Sources: []sourceStatus{}, Store: storeStatus{SyncAlways: true, Bytes: 123456789, Limit: 50 << 30}}
	for i, one := range shown {
		one.State.TakenIn, one.State.Dead = 100*i, i%2
		s.Sources = append(s.Sources, newSourceStatus(one))
	}
	for _, name := range []string{"fetcher", "parser", "router", "archiver"} {
		s.Stages = append(s.Stages, stageStatus{Name: name, Instances: 1, Lag: len(name)})
	}
	return s
}

func TestTheStatusIsReadByPeopleAndPrograms(t *testing.T) {
	p, out := printer()
	s := statusOf(offices())
	if err := errors.Join(p.printStatus(s), p.printJSON(s)); err != nil {
		t.Fatal(err)
	}
	s.Store = storeStatus{Bytes: 1}
	if err := errors.Join(p.printStatus(statusOf(nil)), p.printf("\n%s\n", s.Store.text(true))); err != nil {
		t.Fatal(err)
	}
	golden(t, "status", out.Bytes())
}

func TestTheCheckEndsWithWhatIsWorst(t *testing.T) {
	shown := offices()
	for name, test := range map[string]struct {
		sources []shownSource
		change  func(*status)
		want    int
	}{
		"all well":      {shown[:1], func(*status) {}, 0},
		"no sources":    {nil, func(*status) {}, 0},
		"degraded":      {shown[:2], func(*status) {}, 1},
		"paused":        {shown[2:3], func(*status) {}, 1},
		"failing":       {shown, func(*status) {}, 2},
		"a stage idle":  {shown[:1], func(s *status) { s.Stages[2].Instances = 0 }, 2},
		"nobody at all": {shown[:1], func(s *status) { s.Stages = []stageStatus{{Name: "fetcher"}} }, 2},
	} {
		s := statusOf(test.sources)
		test.change(&s)
		if got := s.check(); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
		if test.want != 0 && s.verdict() == "All well." {
			t.Errorf("%s: all is well, and the exit code is %d", name, test.want)
		}
	}
}

func TestAReceiptTellsTheWayOfAMail(t *testing.T) {
	p, out := printer()
	ref := contract.SourceRef{ID: "sales", Name: "Myynti", Address: "sales@example.org"}
	from := &contract.Address{Name: "Matti \u202eVirtanen\x1b[31m", Address: "matti@example.org"}
	at := func(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }
	taken := receipt{
		Mail: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", Source: ref, From: from, Subject: "Tarjouspyyntö\n40 kpl",
		MessageID: "<1@example.org>", Request: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", ReceivedAt: utc(noon),
	}
	taken.step(bus.Stored{Time: at(4), Sequence: 1}, "archiver", "archived", "", outcomeText(contract.Disposed{
		Outcome: contract.OutcomeArchived, Mailbox: "Archive",
	}))
	taken.step(bus.Stored{Time: at(1), Sequence: 9}, "fetcher", "stored", "", "880 bytes")
	taken.step(bus.Stored{Time: at(2), Sequence: 4}, "parser", "parsed", "ok", "")
	taken.step(bus.Stored{Time: at(3), Sequence: 2}, "router", "received", "", "workflow sales")
	left := receipt{Source: ref}
	left.left(&contract.SkippedMail{
		Source: ref, From: from, Reason: "skipped", Stage: "fetcher", ReceivedAt: noon,
		Reply: contract.Reply{Verdict: "not-reply", Reasons: []string{"no_reference"}},
	}, at(1), 0)
	dead := receipt{Mail: "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", Source: ref}
	dead.step(bus.Stored{Time: at(1)}, "fetcher", "stored", "", "1 bytes")
	dead.step(bus.Stored{Time: at(2)}, "parser", "dead-letter", "mail.failed",
		fault.New(fault.MailFailed, nil, nil).Text("en").Headline+", "+attempts(1))
	waits := receipt{Mail: "cccccccccccccccccccccccccccccccc", Source: contract.SourceRef{ID: "gone"}}
	waits.step(bus.Stored{Time: at(1)}, "fetcher", "stored", "", "1 bytes")
	r := receipts{Query: "matti", Mails: []receipt{taken, left, dead, waits}, Sources: []contract.SourceRef{ref}}
	for i := range r.Mails {
		r.Mails[i].settle()
	}
	if err := errors.Join(p.printReceipts(r), p.printf("\n"), p.printJSON(r), p.printf("\n")); err != nil {
		t.Fatal(err)
	}
	for _, nothing := range []receipts{
		{Query: "never \x1b[2J", Sources: []contract.SourceRef{ref}}, {Query: "never"},
	} {
		if err := p.printReceipts(nothing); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "receipt", out.Bytes())
}

func TestDeadLettersSayWhatToDo(t *testing.T) {
	p, out := printer()
	letter := contract.DeadLetter{
		Stage: "parser", Source: "sales", Mail: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", Code: "mail.crashed",
		Reason: "the process died with this mail in hand", Attempts: 3, At: noon.Add(-30 * time.Hour),
		Message: contract.Kept{
			Stream: "MAIL", Sequence: 17, Subject: contract.RawSubject("sales", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
			Body: []byte("From: Matti <matti@example.org>\r\nSubject: =?utf-8?q?Tarjouspyynt=C3=B6?=\r\n\r\nHei\r\n"),
		},
	}
	err := errors.Join(p.printLetters(nil), p.printLetters([]contract.DeadLetter{letter}), p.printLetter(letter))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "dead-letters", out.Bytes())
}

func TestAnEventIsShownOnTwoReadableLines(t *testing.T) {
	p, out := printer()
	for _, stored := range []bus.Stored{
		{
			Subject: "contact-request.v1.received.sales.info.aaaa", Time: noon,
			Body: []byte(`{"event":"received","request":"aaaa","from":{"name":"Aino","address":"aino@example.org"},
				"subject":"Hana \u001b[31mvuotaa","text":"Hei,\n\nhana vuotaa.","attachments":[{"index":0}],
				"parse":{"status":"repaired"}}`),
		},
		{
			Subject: "contact-request.v1.replied.sales.info.bbbb", Time: noon.Add(-24 * time.Hour),
			Body: []byte(`{"event":"replied","request":"aaaa","from":{"address":"aino@example.org"},"machine":"list",
				"text":"Tiistai sopii\n> Hei","text_reply":"Tiistai sopii","parse":{"status":"ok"}}`),
		},
		{Subject: "contact-request.v1.forwarded.sales.info.cccc", Time: noon, Body: []byte(`{"event":"forwarded"}`)},
		{Subject: "contact-request.v1.erased.sales.info.dddd", Time: noon, Body: []byte(`not JSON`)},
	} {
		if err := p.printEvent(stored); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "watch", out.Bytes())
}

func TestStepsOfATestSayWhatWasLearntAndWhatToDo(t *testing.T) {
	p, out := printer()
	for _, step := range []mailbox.Step{
		{Name: "dns", Status: mailbox.StepOK, Duration: 12 * time.Millisecond, Facts: map[string]string{"addresses": "192.0.2.1"}},
		{Name: "tls", Status: mailbox.StepWarn, Duration: time.Second,
			Fault: fault.New(fault.TLSExpiresSoon, nil, fault.Params{"until": "2026-12-01"})},
		{Name: "sign-in", Status: mailbox.StepFail, Duration: 2 * time.Second, Fault: fault.New(fault.AuthRejected, nil, nil)},
		{Name: "inbox", Status: mailbox.StepSkipped},
		{Name: "tcp", Status: mailbox.StepFail, Facts: map[string]string{"hint_port": "993"},
			Fault: fault.New(fault.TCPRefused, nil, fault.Params{"host": "mail.example.org", "port": "143"})},
		{Name: "tls", Facts: map[string]string{"version": "TLS 1.3", "names": "mail.example.org", "issuer": "CN=Test",
			"not_after": "2027-01-01T00:00:00Z"}, Status: mailbox.StepOK},
		{Name: "archive", Status: mailbox.StepOK, Facts: map[string]string{"create": "Archive"}},
		{Name: "backlog", Status: mailbox.StepOK,
			Facts: map[string]string{"messages": "412", "then": "archive", "mailbox": "Archive"}},
		{Name: "backlog", Status: mailbox.StepOK, Facts: map[string]string{"messages": "2", "then": "archive"}},
		{Name: "rights", Status: mailbox.StepSkipped, Facts: map[string]string{"why": "the server does not tell"}},
	} {
		if err := p.printStep(step); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "sources-test", out.Bytes())
}

func TestErrorsSayWhatHappenedWhatWeDoAndWhatToDo(t *testing.T) {
	var out bytes.Buffer
	for _, err := range []error{
		fmt.Errorf("source sales: %w", fault.New(fault.DNSNoSuchHost, errors.New("lookup: hunter2"),
			fault.Params{"host": "mial.example.org"})),
		fault.New(fault.StoreUnavailable, errors.New("nats: no servers available for connection"), nil),
		errors.Join(errors.New("first"), errors.New("second")),
		&source.InvalidError{What: "the source sales", Violations: []source.Violation{
			{Field: "port", Rule: source.RulePort, Message: "The port 25 is not allowed."},
			{Field: "name", Rule: source.RuleRequired, Message: "Give the name."},
		}},
		&source.FileError{Path: "sources.yaml", Problems: []source.Problem{
			{Line: 3, Source: "sales", Violation: source.Violation{Field: "port", Message: "The port 25 is not allowed."}},
		}},
		&notRunning{looked: "no --nats is given, and there is no posthorn-data/ready.json"},
		fmt.Errorf("scan: %w", context.Canceled),
	} {
		if complain(&out, err) != exitFailed {
			t.Errorf("%v ends cleanly", err)
		}
	}
	golden(t, "errors", out.Bytes())
}

func TestSizesAndTimesAreShort(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KB", 5 << 30: "5.0 GB", 3 << 50: "3072.0 TB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "just now", 59 * time.Second: "59 s ago", 90 * time.Second: "1 min ago", 47 * time.Hour: "47 h ago",
		72 * time.Hour: "3 days ago",
	} {
		if got := ago(noon.Add(-d), noon); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
	if got := ago(time.Time{}, noon); got != "never" {
		t.Error(got)
	}
}
