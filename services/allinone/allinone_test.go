package allinone

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox/mailboxtest"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
)

// program is a running Posthorn in this process.
type program struct {
	t    *testing.T
	conn *bus.Conn
	data string
	stop func()
}

// start runs everything over a data directory and waits until every stage is at work.
func start(t *testing.T, data, sources string) *program {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sources.yaml")
	if err := os.WriteFile(file, []byte(sources), 0o600); err != nil {
		t.Fatal(err)
	}
	read, write := io.Pipe()
	cfg := DefaultConfig()
	cfg.Data, cfg.SourcesFile, cfg.HTTP, cfg.NATSListen, cfg.ReadyJSON = data, file, "127.0.0.1:0", "127.0.0.1:0", write
	cfg.Timeout = 5 * time.Second
	for port := 1024; port < 65536; port++ {
		cfg.AllowedPorts = append(cfg.AllowedPorts, port)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() {
		err := Run(ctx, cfg, log)
		_ = write.CloseWithError(fmt.Errorf("ended: %w", err))
		ended <- err
	}()
	p := &program{t: t, data: data}
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		if p.conn != nil {
			p.conn.Close()
		}
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the program ended with: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("the program did not stop within a minute")
		}
		if t.Failed() || testing.Verbose() {
			t.Logf("log:\n%s", logged.String())
		}
	}
	t.Cleanup(p.stop)
	var addresses Addresses
	if err := json.NewDecoder(read).Decode(&addresses); err != nil {
		t.Fatalf("no ready line: %v\n%s", err, logged.String())
	}
	go func() { _, _ = io.Copy(io.Discard, read) }()
	conn, err := bus.Connect(t.Context(), bus.Options{URL: addresses.NATS, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	p.conn = conn
	return p
}

// eventually polls until check is true.
func (p *program) eventually(what string, check func() bool) {
	p.t.Helper()
	deadline := time.After(time.Minute)
	for !check() {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			p.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// events reads every contact request event of a source.
func (p *program) events(source string) []contract.ContactRequest {
	p.t.Helper()
	var events []contract.ContactRequest
	err := p.conn.Scan(p.t.Context(), contract.StreamContactRequests, bus.ScanOptions{
		Filters: []string{contract.ContactRequestSubject("*", "*", source, "*")},
	}, func(stored bus.Stored) error {
		var event contract.ContactRequest
		if err := json.Unmarshal(stored.Body, &event); err != nil {
			return err
		}
		events = append(events, event)
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return events
}

// dump shows a stream when the test has failed.
func (p *program) dump(stream contract.Stream) {
	if !p.t.Failed() {
		return
	}
	_ = p.conn.Scan(context.Background(), stream, bus.ScanOptions{}, func(stored bus.Stored) error {
		p.t.Logf("%s %d %s %s", stream, stored.Sequence, stored.Subject, stored.Body)
		return nil
	})
}

func (p *program) state(id string) source.State {
	p.t.Helper()
	bucket, err := p.conn.Bucket(p.t.Context(), bus.BucketSourceState)
	if err != nil {
		p.t.Fatal(err)
	}
	state, err := source.NewStates(stage.Records(bucket), source.PartFetch).Get(p.t.Context(), id)
	if err != nil {
		p.t.Fatal(err)
	}
	return state
}

func mail(n int, extra ...string) []byte {
	header := append([]string{
		fmt.Sprintf("From: Customer %d <customer%d@example.net>", n, n), "To: sales@example.org",
		fmt.Sprintf("Subject: Enquiry %d", n), fmt.Sprintf("Message-ID: <enquiry-%d@example.net>", n),
		"Date: Mon, 23 Nov 2026 10:00:00 +0200",
	}, extra...)
	return []byte(strings.Join(header, "\r\n") + fmt.Sprintf("\r\n\r\nWe need %d pieces.\r\n", n))
}

func sourcesFile(t *testing.T, entries ...string) string {
	t.Helper()
	return "workflows:\n  - {id: sales, name: Sales, published: true}\nsources:\n" + strings.Join(entries, "")
}

func entry(t *testing.T, id, kind string, port int, ca *mailboxtest.CA, more ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	lines := append([]string{
		"id: " + id, "name: Source " + id, "default_workflow: sales", "type: " + kind, "address: " + id + "@example.org",
		"server: 127.0.0.1", fmt.Sprintf("port: %d", port), "username: user", "password: secret", "ssl: true",
		"ca_file: " + file, "poll_interval: 5s",
	}, more...)
	return "  - " + strings.Join(lines, "\n    ") + "\n"
}

func TestEveryMailMakesOneRequestAndIsThenArchived(t *testing.T) {
	server, err := mailboxtest.StartIMAP(mailboxtest.IMAPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	want := map[string]bool{}
	for n := range 60 {
		raw := mail(n)
		server.Deliver("user", "INBOX", raw)
		want[string(raw)] = true
	}
	data := t.TempDir()
	sources := sourcesFile(t, entry(t, "sales", "imap", server.Port(), server.CA()))
	p := start(t, data, sources)
	p.eventually("60 requests", func() bool { return len(p.events("sales")) >= 60 })
	p.eventually("60 mails in the archive", func() bool { return len(server.Mails("user", "Archive")) == 60 })
	for _, archived := range server.Mails("user", "Archive") {
		if !want[string(archived.Raw)] {
			t.Errorf("a mail in the archive is not one of those put in: %q", archived.Raw)
		}
		if len(archived.Flags) > 0 {
			t.Errorf("a mail in the archive carries flags: %v", archived.Flags)
		}
	}
	if left := server.Mails("user", "INBOX"); len(left) != 0 {
		t.Errorf("%d mails are left in the Inbox", len(left))
	}
	for _, event := range p.events("sales") {
		if event.Event != contract.EventReceived || event.Workflow != "sales" || event.Request != event.Mail {
			t.Errorf("event: %+v", event)
		}
	}
	p.eventually("a state that is well", func() bool {
		s := p.state("sales")
		return s.State == source.StateOK && s.Waiting == 0 && s.Inbox == 0
	})

	server.Deliver("user", "INBOX", mail(61))
	p.eventually("a mail that arrives later", func() bool { return len(p.events("sales")) == 61 })
	p.stop()

	again := start(t, data, sources)
	server.Deliver("user", "INBOX", mail(62))
	defer again.dump(contract.StreamDispositions)
	again.eventually("62 mails in the archive", func() bool { return len(server.Mails("user", "Archive")) == 62 })
	if events := again.events("sales"); len(events) != 62 {
		t.Errorf("%d events after a restart", len(events))
	}
}

// imapServer starts an IMAP server that ends with the test.
func imapServer(t *testing.T, options mailboxtest.IMAPOptions) *mailboxtest.IMAP {
	t.Helper()
	server, err := mailboxtest.StartIMAP(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return server
}

// popServer starts a POP3 server that ends with the test.
func popServer(t *testing.T, options mailboxtest.POP3Options) *mailboxtest.POP3 {
	t.Helper()
	server, err := mailboxtest.StartPOP3(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return server
}

func TestAMaildropIsLeftAsItIsOrEmptiedAsTheSourceSays(t *testing.T) {
	for name, tc := range map[string]struct {
		options  mailboxtest.POP3Options
		settings []string
		left     int
	}{
		"archive means left and remembered": {left: 20, options: mailboxtest.POP3Options{Lock: true}},
		"delete":                            {left: 0, settings: []string{"delete_fetched: true"}, options: mailboxtest.POP3Options{Lock: true}},
		"delete on a server without UIDL":   {left: 0, settings: []string{"delete_fetched: true"}, options: mailboxtest.POP3Options{Without: []string{"UIDL"}}},
		"left on a server without UIDL":     {left: 20, options: mailboxtest.POP3Options{Without: []string{"UIDL"}}},
		"delete on a server without TOP":    {left: 0, settings: []string{"delete_fetched: true"}, options: mailboxtest.POP3Options{Without: []string{"TOP"}}},
		"leave":                             {left: 20, settings: []string{"after_fetch: leave"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := popServer(t, tc.options)
			for n := range 20 {
				server.Deliver("user", mail(n))
			}
			p := start(t, t.TempDir(), sourcesFile(t, entry(t, "pop", "pop3", server.Port(), server.CA(), tc.settings...)))
			p.eventually("20 requests", func() bool { return len(p.events("pop")) >= 20 })
			p.eventually("the maildrop as it has to be", func() bool { return len(server.Mails("user")) == tc.left })
			p.eventually("two complete cycles since", func() bool {
				s := p.state("pop")
				return s.State == source.StateOK && s.Inbox == tc.left && s.Waiting == 0 && s.Unaccounted == 0
			})
			if events := p.events("pop"); len(events) != 20 {
				t.Errorf("%d events of 20 mails", len(events))
			}
		})
	}
}

func TestOnlyRepliesAreTakenInAndTheRestIsLeftUntouched(t *testing.T) {
	server := imapServer(t, mailboxtest.IMAPOptions{})
	for n := range 5 {
		server.Deliver("user", "Sent", []byte(fmt.Sprintf("From: replies@example.org\r\nTo: customer%d@example.net\r\n"+
			"Subject: Offer %d\r\nMessage-ID: <offer-%d@example.org>\r\nDate: Sun, 22 Nov 2026 10:00:00 +0200\r\n\r\nOffer\r\n",
			n, n, n)))
		server.Deliver("user", "INBOX", mail(n, fmt.Sprintf("In-Reply-To: <offer-%d@example.org>", n)))
	}
	for n := 10; n < 15; n++ {
		server.Deliver("user", "INBOX", mail(n))
	}
	bounce := mail(20, "References: <offer-1@example.org>", "Auto-Submitted: auto-replied",
		"Content-Type: multipart/report; report-type=delivery-status; boundary=b")
	server.Deliver("user", "INBOX", bounce)
	unknown := mail(21, "In-Reply-To: <never-seen@example.org>")
	server.Deliver("user", "INBOX", unknown)

	data := t.TempDir()
	p := start(t, data, sourcesFile(t, entry(t, "replies", "imap", server.Port(), server.CA(), "replies_only: true")))
	p.eventually("5 replies in the archive", func() bool { return len(server.Mails("user", "Archive")) == 5 })
	p.eventually("7 left", func() bool {
		s := p.state("replies")
		return s.Left == 7 && s.LeftBy["skipped"] == 6 && s.LeftBy["unsure"] == 1 && s.Inbox == 7
	})
	if events := p.events("replies"); len(events) != 5 {
		t.Errorf("%d events of 5 replies", len(events))
	}
	for _, left := range server.Mails("user", "INBOX") {
		if len(left.Flags) > 0 {
			t.Errorf("a mail that was left carries flags: %v", left.Flags)
		}
	}

	// The Sent copy of what an unsure mail answers arrives late.
	server.Deliver("user", "Sent", []byte("Message-ID: <never-seen@example.org>\r\nSubject: Late\r\n\r\nLate\r\n"))
	server.Deliver("user", "INBOX", mail(30))
	p.eventually("the reply whose Sent copy was late", func() bool { return len(p.events("replies")) == 6 })
	p.stop()

	p = start(t, data, sourcesFile(t, entry(t, "replies", "imap", server.Port(), server.CA(), "replies_only: false")))
	p.eventually("everything that had been left", func() bool { return len(p.events("replies")) == 13 })
	p.eventually("an empty Inbox", func() bool { return len(server.Mails("user", "INBOX")) == 0 })
}

func TestTwinsMakeOneRequestAndBothPlacesAreTidied(t *testing.T) {
	server := imapServer(t, mailboxtest.IMAPOptions{})
	for range 3 {
		server.Deliver("user", "INBOX", mail(1))
	}
	server.Deliver("user", "INBOX", mail(2))
	p := start(t, t.TempDir(), sourcesFile(t, entry(t, "twins", "imap", server.Port(), server.CA())))
	p.eventually("an empty Inbox", func() bool { return len(server.Mails("user", "INBOX")) == 0 })
	if got := len(server.Mails("user", "Archive")); got != 4 {
		t.Errorf("%d mails in the archive", got)
	}
	if events := p.events("twins"); len(events) != 2 {
		t.Errorf("%d events of 2 different mails", len(events))
	}
}

func TestAMailThatIsPutBackStaysWhereThePersonPutIt(t *testing.T) {
	server := imapServer(t, mailboxtest.IMAPOptions{})
	server.Deliver("user", "INBOX", mail(1))
	p := start(t, t.TempDir(), sourcesFile(t, entry(t, "back", "imap", server.Port(), server.CA())))
	p.eventually("a mail in the archive", func() bool {
		return len(server.Mails("user", "Archive")) == 1 && p.state("back").Inbox == 0 && p.state("back").State == "ok"
	})
	server.Deliver("user", "INBOX", mail(1))
	p.eventually("a mail that was put back", func() bool { return p.state("back").LeftBy["put_back"] == 1 })
	if len(server.Mails("user", "INBOX")) != 1 || len(p.events("back")) != 1 {
		t.Error("a mail that was put back was moved, or has made a second request")
	}
}

func TestAMailThatIsTooLargeIsTakenInByItsHeadersAndStays(t *testing.T) {
	server := imapServer(t, mailboxtest.IMAPOptions{})
	large := append(mail(1), bytes.Repeat([]byte("0123456789abcdef\r\n"), 200_000)...)
	server.Deliver("user", "INBOX", large)
	server.Deliver("user", "INBOX", mail(2))
	p := start(t, t.TempDir(), sourcesFile(t, entry(t, "large", "imap", server.Port(), server.CA(), "max_size: 1MB")))
	p.eventually("both requests", func() bool { return len(p.events("large")) == 2 })
	p.eventually("the large one left", func() bool {
		s := p.state("large")
		return s.LeftBy["oversize"] == 1 && s.Inbox == 1
	})
	for _, event := range p.events("large") {
		if event.MessageID == "<enquiry-1@example.net>" && event.Parse.Status != "limits" {
			t.Errorf("the large mail's request: %+v", event.Parse)
		}
	}
	if sent := server.BytesSent(); sent > 200_000 {
		t.Errorf("the server has sent %d bytes: the large mail was downloaded", sent)
	}
}

func TestALargeMailTravelsByClaimCheck(t *testing.T) {
	server := imapServer(t, mailboxtest.IMAPOptions{})
	large := append(mail(1), bytes.Repeat([]byte("0123456789abcdef\r\n"), 200_000)...)
	server.Deliver("user", "INBOX", large)
	p := start(t, t.TempDir(), sourcesFile(t, entry(t, "large", "imap", server.Port(), server.CA())))
	p.eventually("the mail in the archive", func() bool { return len(server.Mails("user", "Archive")) == 1 })
	event := p.events("large")[0]
	if event.Raw.Object == "" || event.Raw.Size != int64(len(large)) {
		t.Errorf("raw: %+v", event.Raw)
	}
	var got []byte
	err := p.conn.Ask(t.Context(), contract.ContentSubject("raw", "large", event.Mail), nil, nil,
		func(header map[string]string, body []byte) (bool, error) {
			got = append(got, body...)
			return header[contract.HeaderLast] == "true", nil
		})
	if err != nil || !bytes.Equal(got, large) {
		t.Errorf("content: %d bytes, %v", len(got), err)
	}
}

func TestARejectedPasswordIsSaidAndClearsAfterAnEdit(t *testing.T) {
	server := imapServer(t, mailboxtest.IMAPOptions{Users: map[string]string{"user": "other"}})
	healthy := imapServer(t, mailboxtest.IMAPOptions{Users: map[string]string{"well": "secret"}})
	healthy.Deliver("well", "INBOX", mail(1))
	server.Deliver("user", "INBOX", mail(2))
	data := t.TempDir()
	p := start(t, data, sourcesFile(t,
		entry(t, "wrong", "imap", server.Port(), server.CA()),
		strings.Replace(entry(t, "well", "imap", healthy.Port(), healthy.CA()), "username: user", "username: well", 1)))
	p.eventually("the reason", func() bool {
		s := p.state("wrong")
		return s.State == source.StateFailing && s.Error != nil && s.Error.Code == "auth.rejected"
	})
	p.eventually("the healthy one drained", func() bool { return len(healthy.Mails("well", "Archive")) == 1 })
	p.stop()
	p = start(t, data, strings.Replace(sourcesFile(t,
		entry(t, "wrong", "imap", server.Port(), server.CA()),
		strings.Replace(entry(t, "well", "imap", healthy.Port(), healthy.CA()), "username: user", "username: well", 1)), "password: secret", "password: other", 1))
	p.eventually("the state clears", func() bool { return p.state("wrong").State == source.StateOK })
	p.eventually("its mail", func() bool { return len(server.Mails("user", "Archive")) == 1 })
}

func TestAMailThatBreaksItsConnectionDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	server := popServer(t, mailboxtest.POP3Options{Fault: func(verb, argument string) *mailboxtest.Fault {
		if verb == "RETR" && argument == "3" {
			return &mailboxtest.Fault{CutBody: 20}
		}
		return nil
	}})
	for n := range 10 {
		server.Deliver("user", mail(n))
	}
	p := start(t, t.TempDir(), sourcesFile(t, entry(t, "cut", "pop3", server.Port(), server.CA())))
	p.eventually("9 requests", func() bool { return len(p.events("cut")) == 9 })
	p.eventually("the gap shown", func() bool {
		s := p.state("cut")
		return s.State == source.StateDegraded && s.Unaccounted == 1 && s.Error.Code == "protocol.closed"
	})
}

func TestACertificateThatSoonExpiresIsSaidWhileMailIsTakenIn(t *testing.T) {
	ca, err := mailboxtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ca.Issue(time.Now().Add(72*time.Hour), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	server := imapServer(t, mailboxtest.IMAPOptions{CA: ca, Certificate: &certificate})
	server.Deliver("user", "INBOX", mail(1))
	p := start(t, t.TempDir(), sourcesFile(t, entry(t, "cert", "imap", server.Port(), ca)))
	p.eventually("the mail in the archive", func() bool { return len(server.Mails("user", "Archive")) == 1 })
	p.eventually("the warning", func() bool {
		s := p.state("cert")
		return s.State == source.StateDegraded && s.ErrorCode() == "tls.expires_soon"
	})
}

func TestAnEmptiedOrOlderStoreIsNoticedBeforeAnythingIsDone(t *testing.T) {
	server := imapServer(t, mailboxtest.IMAPOptions{})
	server.Deliver("user", "INBOX", mail(1))
	data := t.TempDir()
	sources := sourcesFile(t, entry(t, "sales", "imap", server.Port(), server.CA(), "after_fetch: leave"))
	p := start(t, data, sources)
	p.eventually("a request", func() bool { return len(p.events("sales")) == 1 })
	p.stop()
	copied := filepath.Join(t.TempDir(), "nats")
	if err := os.CopyFS(copied, os.DirFS(filepath.Join(data, "nats"))); err != nil {
		t.Fatal(err)
	}
	p = start(t, data, sources)
	server.Deliver("user", "INBOX", mail(2))
	p.eventually("another request", func() bool { return len(p.events("sales")) == 2 })
	p.stop()

	for what, replace := range map[string]func() error{
		"emptied": func() error { return nil },
		"older":   func() error { return os.CopyFS(filepath.Join(data, "nats"), os.DirFS(copied)) },
	} {
		if err := errors.Join(os.RemoveAll(filepath.Join(data, "nats")), replace()); err != nil {
			t.Fatal(err)
		}
		cfg := DefaultConfig()
		cfg.Data, cfg.HTTP, cfg.NATSListen = data, "127.0.0.1:0", "off"
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := Run(ctx, cfg, slog.New(slog.DiscardHandler))
		cancel()
		if fault.CodeOf(err) != fault.StoreForeign {
			t.Errorf("%s: %v", what, err)
		}
	}
	if sent := server.Connections(); sent > 4 {
		t.Errorf("%d connections: the mailbox was opened over a store that is not the right one", sent)
	}
}
