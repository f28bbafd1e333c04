package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/services/allinone"
	"posthorn/services/demo"
)

// running is the whole program, with three mailboxes to drain.
type running struct {
	office *demo.Office
	data   string
	where  allinone.Addresses
}

// start starts `posthorn run` and waits until it is ready; it is stopped with the test.
func start(t *testing.T) *running {
	t.Helper()
	office, err := demo.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := office.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &running{office: office, data: t.TempDir()}
	ports := []string{"993"}
	for _, account := range office.Accounts() {
		ports = append(ports, strconv.Itoa(account.Port))
	}
	ctx, stop := context.WithCancel(context.Background())
	read, stdout := io.Pipe()
	var log bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		code := execute(ctx, []string{
			"run", "--data", r.data, "--http", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0", "--ready-json",
			"--timeout", "10s", "--allowed-ports", strings.Join(ports, ","),
		}, stdout, &log)
		_ = stdout.CloseWithError(fmt.Errorf("ended with %d: %s", code, &log))
		ended <- code
	}()
	t.Cleanup(func() {
		stop()
		select {
		case code := <-ended:
			if code != exitOK {
				t.Errorf("run ended with %d", code)
			}
		case <-time.After(time.Minute):
			t.Error("run did not stop within a minute")
		}
		if t.Failed() {
			t.Logf("log:\n%s", &log)
		}
	})
	if err := json.NewDecoder(read).Decode(&r.where); err != nil {
		t.Fatalf("no ready line: %v", err)
	}
	return r
}

// run runs a command on the running program and expects its exit code.
func (r *running) run(t *testing.T, code int, args ...string) string {
	t.Helper()
	out, complaint, got := posthorn(t, append(args, "--data", r.data)...)
	if got != code {
		t.Fatalf("%v: exit code %d, want %d\n%s%s", args, got, code, out, complaint)
	}
	if code == exitFailed && out == "" {
		return complaint
	}
	return out
}

// json runs a command with --json and reads what it prints.
func (r *running) json(t *testing.T, into any, args ...string) {
	t.Helper()
	out := r.run(t, exitOK, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// publish puts a message into the store of the running program.
func (r *running) publish(t *testing.T, message func() (bus.Outgoing, error)) {
	t.Helper()
	conn, err := bus.Connect(t.Context(), bus.Options{URL: r.where.NATS})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	out, err := message()
	if err == nil {
		_, err = conn.Publisher().Publish(t.Context(), out)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// await repeats until it holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(time.Minute); ; {
		if holds() {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// contains expects texts in what a command printed.
func contains(t *testing.T, out string, want ...string) {
	t.Helper()
	for _, text := range want {
		if !strings.Contains(out, text) {
			t.Errorf("%q is missing in\n%s", text, out)
		}
	}
}

func TestTheCommandsOnARunningProgram(t *testing.T) {
	r := start(t)
	steps := []struct {
		name string
		test func(*testing.T, *running)
	}{
		{"nothing there yet", testEmpty},
		{"applying a file", testApply},
		{"watching what comes in", testWatch},
		{"the status of it all", testStatus},
		{"testing and tracing a source", testTest},
		{"the receipt of a mail", testReceipt},
		{"dead letters", testDeadLetters},
		{"pausing, resuming and retrying", testPause},
		{"keeping it running", testKeep},
		{"removing sources", testRemove},
	}
	for _, step := range steps { // each goes on where the one before ended
		if !t.Run(step.name, func(t *testing.T) { step.test(t, r) }) {
			return
		}
	}
}

func testEmpty(t *testing.T, r *running) {
	contains(t, r.run(t, exitOK, "status", "--check"), "no sources yet", "fetcher           1")
	contains(t, r.run(t, exitOK, "sources", "list"), "no sources yet")
	contains(t, r.run(t, exitFailed, "sources", "show", "sales"), "there are none at all")
	contains(t, r.run(t, exitFailed, "receipt", "anybody"), "never seen", "there are none")
	contains(t, r.run(t, exitOK, "doctor"), "! sources")
	var found receipts
	if err := json.Unmarshal([]byte(r.run(t, exitFailed, "receipt", "anybody", "--json")), &found); err != nil {
		t.Fatal(err)
	}
	if len(found.Mails) != 0 || found.Query != "anybody" {
		t.Errorf("%+v", found)
	}
}

func testApply(t *testing.T, r *running) {
	t.Setenv("SECRET_OF_THE_FILE", "hunter2")
	file := write(t, "sources.yaml", string(r.office.SourcesFile()))
	contains(t, r.run(t, exitOK, "sources", "apply", "-f", file, "--dry-run"), "created", "dry run")
	contains(t, r.run(t, exitOK, "sources", "list"), "no sources yet")
	contains(t, r.run(t, exitOK, "sources", "apply", "-f", file), "created     ", "sales")
	contains(t, r.run(t, exitOK, "sources", "apply", "-f", file), "unchanged   ")

	broken := write(t, "broken.yaml", `sources:
  - {id: sales, name: Sales, default_workflow: nowhere, type: imap, address: sales, server: "a b", port: 25,
     username: x, password: "${SECRET_OF_THE_FILE}"}
`)
	complaint := r.run(t, exitFailed, "sources", "apply", "-f", broken)
	contains(t, complaint, "nothing was applied", "broken.yaml:", `no workflow "nowhere"`, "The port 25 is not allowed")
	if strings.Contains(complaint, "hunter2") {
		t.Errorf("a secret is shown: %s", complaint)
	}
	complaint = r.run(t, exitFailed, "sources", "apply", "-f", file, "--key-file", filepath.Join(r.data, "none"))
	contains(t, complaint, "the key file", "none")
	contains(t, r.run(t, exitFailed, "sources", "show", "slaes"), `there is no source "slaes"; there are: info, sales, support`)
}

func testWatch(t *testing.T, r *running) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	read, stdout := io.Pipe()
	started, stderr := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		code := execute(ctx, []string{"watch", "--json", "--source", "Sales inbox", "--data", r.data}, stdout, stderr)
		_ = stdout.Close()
		ended <- code
	}()
	if line, err := bufio.NewReader(started).ReadString('\n'); err != nil || !strings.Contains(line, "*.*.sales.*") {
		t.Fatalf("%q %v", line, err)
	}
	r.office.Deliver(10)
	lines := bufio.NewScanner(read)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() {
		t.Fatal(lines.Err())
	}
	var body contract.ContactRequest
	if err := json.Unmarshal(lines.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	if body.Event != contract.EventReceived || body.Source.ID != "sales" || body.From == nil {
		t.Errorf("%s", lines.Bytes())
	}
	stop()
	go func() { _, _ = io.Copy(io.Discard, read) }() // what came meanwhile
	if code := <-ended; code != exitOK {
		t.Errorf("watch ended with %d", code)
	}
}

func testStatus(t *testing.T, r *running) {
	var now status
	await(t, "every mail is taken in or left", func() bool {
		r.json(t, &now, "status")
		sum := 0
		for _, s := range now.Sources {
			sum += s.TakenIn + s.Left
		}
		return sum == 10
	})
	if len(now.Sources) != 3 || len(now.Stages) != 4 || !now.Store.SyncAlways || now.Store.Bytes == 0 || now.Store.Limit == 0 {
		t.Errorf("%+v", now)
	}
	await(t, "every source is ok", func() bool {
		_, _, code := posthorn(t, "status", "--check", "--data", r.data)
		return code == exitOK
	})
	contains(t, r.run(t, exitOK, "status"), "All well.", "● ok", "not encrypted, within this machine", "not a reply: ")
	contains(t, r.run(t, exitOK, "sources", "list"), "● ok", "Sales inbox")
	var list struct {
		Sources []map[string]any `json:"sources"`
	}
	r.json(t, &list, "sources", "list")
	if len(list.Sources) != 3 {
		t.Errorf("%v", list)
	}
	shown := r.run(t, exitOK, "sources", "show", "sales inbox", "--json")
	contains(t, shown, `"epoch": "`, `"shard": `, `"state": {`, `"auth": "password"`)
	if strings.Contains(shown, "sealed") || strings.Contains(shown, r.office.Accounts()[0].Password+`"`) {
		t.Errorf("a secret is shown: %s", shown)
	}
}

func testTest(t *testing.T, r *running) {
	contains(t, r.run(t, exitOK, "sources", "test", "sales"), "✓ sign-in", "✓ inbox", "Mail can be taken in.")
	for line := range strings.Lines(r.run(t, exitOK, "sources", "test", "info", "--json")) {
		var step map[string]any
		if err := json.Unmarshal([]byte(line), &step); err != nil || step["name"] == "" || step["status"] == "fail" {
			t.Errorf("%q %v", line, err)
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	read, stdout := io.Pipe()
	started, stderr := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		code := execute(ctx, []string{"sources", "trace", "info", "--data", r.data}, stdout, stderr)
		_ = stdout.Close()
		ended <- code
	}()
	if _, err := bufio.NewReader(started).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	r.run(t, exitOK, "sources", "retry", "info")
	line, err := bufio.NewReader(read).ReadString('\n')
	if err != nil || !strings.Contains(line, " S: ") && !strings.Contains(line, " C: ") {
		t.Errorf("%q %v", line, err)
	}
	stop()
	go func() { _, _ = io.Copy(io.Discard, read) }() // what was spoken meanwhile
	if code := <-ended; code != exitOK {
		t.Errorf("trace ended with %d", code)
	}
}

func testReceipt(t *testing.T, r *running) {
	var found receipts
	r.json(t, &found, "receipt", "aino")
	if len(found.Mails) == 0 {
		t.Fatal("nothing is found")
	}
	mail := found.Mails[len(found.Mails)-1]
	await(t, "the mail is archived", func() bool {
		r.json(t, &found, "receipt", mail.Mail)
		steps := found.Mails[0].Steps
		return len(found.Mails) == 1 && steps[len(steps)-1].What == contract.OutcomeArchived
	})
	whats := ""
	for _, step := range found.Mails[0].Steps {
		whats += step.Stage + " " + step.What + "; "
	}
	if want := "fetcher stored; parser parsed; router received; router ordered; archiver archived; "; whats != want {
		t.Errorf("%s, want %s", whats, want)
	}
	for _, id := range []string{mail.MessageID, strings.Trim(mail.MessageID, "<>")} {
		r.json(t, &found, "receipt", id)
		if len(found.Mails) != 1 || found.Mails[0].Mail != mail.Mail || found.Mails[0].State != takenIn {
			t.Errorf("%s: %+v", id, found.Mails)
		}
	}
	contains(t, r.run(t, exitOK, "receipt", mail.MessageID), "taken in, source Sales inbox", `moved to "Archive"`)

	contains(t, r.run(t, exitOK, "receipt", "office", "trends"), "left in the Inbox", "not a reply")
	r.json(t, &found, "receipt", "office", "trends")
	left := found.Mails[0]
	r.json(t, &found, "receipt", left.MessageID)
	if len(found.Mails) != 1 || found.Mails[0].State != leftThere || found.Mails[0].Source.ID != "support" {
		t.Errorf("%+v", found.Mails)
	}
	r.publish(t, func() (bus.Outgoing, error) { // left by the parser: its bytes are erased
		out, err := bus.Event(contract.TypeSkipped, contract.SkippedSubject("sales"), "left", "sales", contract.SkippedMail{
			Mail: strings.Repeat("c", 32), Source: contract.SourceRef{ID: "sales"}, Reason: "skipped", Stage: "parser",
			Subject: "Nothing that we asked for",
		})
		out.Header[contract.HeaderMail] = strings.Repeat("c", 32)
		return out, err
	})
	for _, query := range []string{strings.Repeat("c", 32), "nothing asked"} {
		contains(t, r.run(t, exitOK, "receipt", query), "left in the Inbox", "parser  skipped  not a reply")
	}
	contains(t, r.run(t, exitFailed, "receipt", "<never@seen.example>"), "never seen", "Sales inbox (sales)")
	contains(t, r.run(t, exitFailed, "receipt", strings.Repeat("a", 32)), "never seen")
}

func testDeadLetters(t *testing.T, r *running) {
	contains(t, r.run(t, exitOK, "dead-letters", "list"), "no dead letters")
	contains(t, r.run(t, exitFailed, "dead-letters", "show", "aaaa"), "no dead letter of the mail aaaa")
	mail := strings.Repeat("b", 32)
	letter := contract.DeadLetter{
		Stage: "parser", Source: "sales", Mail: mail, Code: "mail.failed", Reason: "no way to read it", Attempts: 1,
		At: time.Now().UTC(), Message: contract.Kept{
			Stream: "MAIL", Subject: contract.RawSubject("sales", mail),
			Body: []byte("Message-ID: <dead@example.org>\r\nFrom: Odd <odd@example.org>\r\nSubject: Odd\r\n\r\n"),
		},
	}
	r.publish(t, func() (bus.Outgoing, error) {
		subject := contract.DeadLetterSubject("parser", "sales", mail)
		return bus.Event(contract.TypeDeadLetter, subject, "dead", "sales", letter)
	})
	contains(t, r.run(t, exitOK, "dead-letters", "list", "--source", "sales"), mail, "mail.failed", "no way to read it")
	var list struct {
		Letters []contract.DeadLetter `json:"dead_letters"`
	}
	r.json(t, &list, "dead-letters", "list")
	if len(list.Letters) != 1 || list.Letters[0].Message.Body != nil {
		t.Errorf("%+v", list)
	}
	contains(t, r.run(t, exitOK, "dead-letters", "show", mail), "Odd <odd@example.org>", "given up by the parser", "you: ")
	var shown contract.DeadLetter
	r.json(t, &shown, "dead-letters", "show", mail)
	if !bytes.Equal(shown.Message.Body, letter.Message.Body) {
		t.Errorf("%q", shown.Message.Body)
	}
	for _, query := range []string{mail, "<dead@example.org>", "odd@example.org"} {
		contains(t, r.run(t, exitOK, "receipt", query), "set aside: a dead letter", "mail.failed")
	}
}

func testPause(t *testing.T, r *running) {
	contains(t, r.run(t, exitOK, "sources", "pause", "support"), "support is paused")
	contains(t, r.run(t, exitOK, "sources", "list"), "‖ paused", "paused by ", "sources resume support")
	r.run(t, 1, "status", "--check")
	contains(t, r.run(t, exitFailed, "sources", "retry", "support"), "sources resume support")
	contains(t, r.run(t, exitOK, "sources", "resume", "support"), "support goes on")
	contains(t, r.run(t, exitOK, "sources", "retry", "support"), "support is tried now")
}

func testKeep(t *testing.T, r *running) {
	contains(t, r.run(t, exitOK, "provision"), "Everything is there.")
	contains(t, r.run(t, exitOK, "rotate-keys"), "3 passwords sealed", filepath.Join(r.data, "keys"))
	contains(t, r.run(t, exitOK, "sources", "test", "sales"), "✓ sign-in")
	if err := os.Chmod(filepath.Join(r.data, "keys"), 0o644); err != nil { //nolint:gosec // what the doctor is to find
		t.Fatal(err)
	}
	contains(t, r.run(t, exitFailed, "doctor"), "✕ key file", "chmod 600", "✓ streams", "✓ sync", "✓ stage archiver")
	if err := os.Chmod(filepath.Join(r.data, "keys"), 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "the doctor finds nothing wrong", func() bool {
		_, _, code := posthorn(t, "doctor", "--data", r.data)
		return code == exitOK
	})
	var found struct {
		Checks []check `json:"checks"`
	}
	r.json(t, &found, "doctor")
	if len(found.Checks) < 10 {
		t.Errorf("%+v", found)
	}
}

func testRemove(t *testing.T, r *running) {
	contains(t, r.run(t, exitFailed, "sources", "remove", "sales"), "managed by a sources file")
	file := write(t, "sources.yaml", "sources: []\n")
	contains(t, r.run(t, exitOK, "sources", "apply", "-f", file), "paused      info, sales, support", "--prune removes them")
	contains(t, r.run(t, exitOK, "sources", "list"), "paused by the sources file")
	contains(t, r.run(t, exitOK, "sources", "apply", "-f", file, "--prune"), "removed     info, sales, support")
	contains(t, r.run(t, exitOK, "sources", "list"), "no sources yet")
}

func TestAProgramThatCannotStartSaysWhy(t *testing.T) {
	dir := write(t, "file", "")
	_, complaint, code := posthorn(t, "run", "--data", dir, "--http", "127.0.0.1:0", "--nats-listen", "off")
	if code != exitFailed || !strings.Contains(complaint, "--data") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
	_, complaint, code = posthorn(t, "run", "--data", t.TempDir(), "--http", "127.0.0.1:0", "--nats-listen", "off",
		"--sources", filepath.Join(t.TempDir(), "none.yaml"))
	if code != exitFailed || !strings.Contains(complaint, "none.yaml") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	var out, log bytes.Buffer
	code = execute(ctx, []string{"run", "--data", t.TempDir(), "--http", "127.0.0.1:0", "--nats-listen", "off"}, &out, &log)
	if code != exitOK {
		t.Errorf("told to stop while it starts: exit code %d: %s", code, &log)
	}
}
