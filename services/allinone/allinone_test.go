package allinone

import (
	"bytes"
	"context"
	"encoding/json"
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
