package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"posthorn/pkg/client"
	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox/mailboxtest"
	"posthorn/schemas"
)

// line is what the program subscriber prints.
type line struct {
	Subject string          `json:"subject"`
	Header  nats.Header     `json:"header"`
	Body    json.RawMessage `json:"body"`
}

// subscribe runs the program subscriber as a process of its own.
func subscribe(t *testing.T, url, subject string) func() []line {
	t.Helper()
	program, err := build("subscriber", ".", "./subscriber")
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), program, url, subject)
	var errs tail
	command.Stderr = &errs
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var lines []line
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		scanner := bufio.NewScanner(out)
		scanner.Buffer(nil, 8<<20)
		for scanner.Scan() {
			var l line
			err := json.Unmarshal(scanner.Bytes(), &l)
			mu.Lock()
			if err != nil {
				l.Subject = "no JSON: " + err.Error()
			}
			lines = append(lines, l)
			mu.Unlock()
		}
		_ = command.Wait() // it is killed at the end
	}()
	t.Cleanup(func() {
		_ = command.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("subscriber: %s", &errs)
		}
	})
	return func() []line {
		mu.Lock()
		defer mu.Unlock()
		return append([]line(nil), lines...)
	}
}

// valid checks a body against the schema of its type.
func valid(t *testing.T, kind string, body []byte) {
	t.Helper()
	text, ok := schemas.Schema(kind)
	if !ok {
		t.Errorf("there is no schema of %q", kind)
		return
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource(kind, document); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile(kind)
	if err != nil {
		t.Fatal(err)
	}
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Errorf("%s: %v", kind, err)
		return
	}
	if err := schema.Validate(instance); err != nil {
		t.Errorf("%s: %v\n%.500s", kind, err, body)
	}
}

func TestAStrangerSubscribesWithNothingButASubject(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("sales", "support")})
	generator := newGenerator("sales", "sales@example.org")
	mails := generator.mixed(60)
	deliver(t, server, "sales", "INBOX", mails...)
	deliver(t, server, "support", "INBOX", newGenerator("support", "support@example.org").mixed(20)...)
	other := on(server, "support", "imap", "")
	other.workflow = "support"
	posthorn := start(t, settings{
		sources: file(on(server, "sales", "imap", ""), other), ports: []int{server.Port("imap")},
	})
	lines := subscribe(t, posthorn.ready.NATS, "contact-request.v1.*.sales.>")
	eventually(t, long, func() (bool, string) {
		return len(lines()) >= len(mails), fmt.Sprintf("the subscriber has seen %d events", len(lines()))
	})
	broker := posthorn.broker()
	broker.awaitEvents("support", 20, long)
	if n := len(lines()); n != len(mails) {
		t.Errorf("the subscriber has seen %d events of %d mails", n, len(mails))
	}
	byKey := map[string][]byte{}
	for _, raw := range mails {
		byKey[contract.MailKey("sales", sha256.Sum256(raw))] = raw
	}
	for _, l := range lines() {
		name, workflow, source, key, err := contract.ContactRequestKeys(l.Subject)
		if err != nil || workflow != "sales" || source != "sales" || byKey[key] == nil {
			t.Errorf("%s: %v", l.Subject, err)
			continue
		}
		kind := l.Header.Get("ce-type")
		if kind != "posthorn.contact-request."+name+".v1" {
			t.Errorf("%s has the type %q", l.Subject, kind)
		}
		for _, header := range []string{"ce-specversion", "ce-id", "ce-source", "ce-time", "traceparent", "Nats-Msg-Id"} {
			if len(l.Header[header]) != 1 || l.Header[header][0] == "" {
				t.Errorf("%s: %s is %q", l.Subject, header, l.Header[header])
			}
		}
		if l.Header.Get("ce-id") != l.Header.Get("Nats-Msg-Id") || l.Header.Get("ce-specversion") != "1.0" ||
			!strings.HasPrefix(l.Header.Get("content-type"), "application/json") {
			t.Errorf("%s has the headers %v", l.Subject, l.Header)
		}
		if _, err := time.Parse(time.RFC3339Nano, l.Header.Get("ce-time")); err != nil {
			t.Errorf("%s: ce-time: %v", l.Subject, err)
		}
		valid(t, kind, l.Body)
	}
	for _, stream := range []struct {
		name   contract.Stream
		filter string
	}{
		{contract.StreamParsed, "mail.v1.parsed.>"}, {contract.StreamDispositions, ">"}, {contract.StreamSources, ">"},
		{contract.StreamAudit, ">"},
	} {
		events := broker.read(stream.name, stream.filter)
		if len(events) == 0 {
			t.Errorf("%s holds nothing", stream.name)
		}
		for _, e := range events {
			valid(t, e.Header.Get("ce-type"), e.Body)
		}
	}
	content(t, broker, byKey, lines())
	events := viaClient(t, posthorn.ready.NATS, len(mails))
	for _, e := range events {
		if e.ContactRequest.Workflow != "sales" || e.ID == "" || byKey[e.ContactRequest.Mail] == nil {
			t.Errorf("the client saw %+v", e)
		}
	}
}

// content asks for raw mails, HTML and attachments as the contract describes it.
func content(t *testing.T, broker *broker, mails map[string][]byte, lines []line) {
	t.Helper()
	html, parts := 0, 0
	for _, l := range lines {
		var r contract.ContactRequest
		if err := json.Unmarshal(l.Body, &r); err != nil {
			t.Fatal(err)
		}
		raw, err := broker.ask("content.v1.raw.sales."+r.Mail, nil)
		if err != nil || !bytes.Equal(raw, mails[r.Mail]) {
			t.Errorf("raw mail %s: %v, %d bytes of %d", r.Mail, err, len(raw), len(mails[r.Mail]))
		}
		if r.HasHTML {
			html++
			if page, err := broker.ask("content.v1.html.sales."+r.Mail, nil); err != nil || !bytes.Contains(page, []byte("<p>")) {
				t.Errorf("HTML of %s: %v: %.80q", r.Mail, err, page)
			}
		}
		for _, a := range r.Attachments {
			parts++
			data, err := broker.ask("content.v1.part.sales."+r.Mail, fmt.Appendf(nil, `{"index":%d}`, a.Index))
			if sum := fmt.Sprintf("%x", sha256.Sum256(data)); err != nil || int64(len(data)) != a.Size || sum != a.SHA256 {
				t.Errorf("attachment %d of %s: %v, %d bytes of %d", a.Index, r.Mail, err, len(data), a.Size)
			}
		}
	}
	if html == 0 || parts == 0 {
		t.Errorf("%d mails had HTML, and there were %d attachments", html, parts)
	}
	if _, err := broker.ask("content.v1.raw.sales."+strings.Repeat("a", 32), nil); err == nil || err.Error() != "not_found" {
		t.Errorf("a mail that does not exist: %v", err)
	}
}

// viaClient reads n events with the Go client.
func viaClient(t *testing.T, url string, n int) []client.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	var events []client.Event
	err := client.Subscribe(ctx, client.Options{
		URL: url, Durable: "go-client", Workflow: "sales", All: true,
		Handler: func(ctx context.Context, e client.Event) error {
			if len(events) == 0 {
				raw, err := e.Raw(ctx)
				if err != nil {
					return err
				}
				data, err := io.ReadAll(raw)
				if err != nil {
					return err
				}
				if got := contract.MailKey("sales", sha256.Sum256(data)); got != e.ContactRequest.Mail {
					t.Errorf("the client read the mail %s for %s", got, e.ContactRequest.Mail)
				}
				if err := raw.Close(); err != nil {
					return err
				}
			}
			if events = append(events, e); len(events) == n {
				cancel()
			}
			return nil
		},
	})
	if err != nil || len(events) != n {
		t.Errorf("the client saw %d events of %d: %v", len(events), n, err)
	}
	return events
}

func TestTheProgramTellsItsHealth(t *testing.T) {
	t.Parallel()
	posthorn := start(t, settings{})
	for path, want := range map[string]string{"/livez": "ok", "/readyz": "ready", "/metrics": "posthorn_build_info"} {
		response, err := http.Get(posthorn.ready.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(want)) {
			t.Errorf("%s: %v %d %.200s", path, err, response.StatusCode, body)
		}
	}
	if h := posthorn.status(); !h.Store.SyncAlways || len(h.Stages) != 4 {
		t.Errorf("status says %+v", h)
	}
	if code := posthorn.stop(); code != 0 {
		t.Errorf("posthorn ended with %d", code)
	}
	if _, code := posthorn.do("status", "--check"); code != 2 {
		t.Errorf("status --check of a stopped program ends with %d", code)
	}
}
