package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox/mailboxtest"
)

// badMails are mails that programs choke on, by what is wrong with them.
func badMails() map[string][]byte {
	head := func(name string) string {
		return "From: Bad <bad@customer.example>\r\nTo: sales@example.org\r\nSubject: " + name + "\r\nMessage-ID: <" + name +
			"@customer.example>\r\nMIME-Version: 1.0\r\n"
	}
	bad := map[string][]byte{
		"no-headers":  []byte("this mail has no header at all\r\nonly text\r\n"),
		"blank-first": []byte("\r\nthis mail begins with a blank line\r\n"),
		"mbox":        []byte("From bad@customer.example Mon Nov 23 12:00:00 2026\r\n" + head("mbox") + "\r\ntext\r\n"),
		"no-boundary": []byte(head("no-boundary") + "Content-Type: multipart/mixed; boundary=\"never\"\r\n\r\ntext\r\n"),
		"unnamed":     []byte(head("unnamed") + "Content-Type: multipart/mixed\r\n\r\n--x\r\n\r\ntext\r\n--x--\r\n"),
		"bare-lf":     []byte(strings.ReplaceAll(head("bare-lf")+"\r\nline\r\nline\r\n", "\r\n", "\n")),
		"nul":         []byte(head("nul") + "X-Nul: a\x00b\r\n\r\nbefore\x00after\r\n"),
		"long-line":   []byte(head("long-line") + "\r\n" + strings.Repeat("x", 3<<20) + "\r\n"),
		"broken-base64": []byte(head("broken-base64") + "Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
			"####not base64####\r\n"),
		"unknown-charset": []byte(head("unknown-charset") + "Content-Type: text/plain; charset=klingon\r\n\r\n\xff\xfe\xfd\r\n"),
	}
	var parts bytes.Buffer
	parts.WriteString(head("parts") + "Content-Type: multipart/mixed; boundary=b\r\n\r\n")
	for range 100_000 {
		parts.WriteString("--b\r\n\r\nx\r\n")
	}
	parts.WriteString("--b--\r\n")
	bad["parts"] = parts.Bytes()

	var levels bytes.Buffer
	levels.WriteString(head("levels"))
	for i := range 2000 {
		fmt.Fprintf(&levels, "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
	}
	levels.WriteString("\r\ntext\r\n")
	bad["levels"] = levels.Bytes()

	var inside bytes.Buffer
	inside.WriteString(head("inside"))
	for range 2000 {
		inside.WriteString("Content-Type: message/rfc822\r\n\r\n")
	}
	inside.WriteString("\r\ntext\r\n")
	bad["inside"] = inside.Bytes()

	var header bytes.Buffer
	header.WriteString(head("header"))
	for i := range 10 << 10 {
		fmt.Fprintf(&header, "X-Filler-%d: %s\r\n", i, strings.Repeat("f", 1000))
	}
	header.WriteString("\r\ntext\r\n")
	bad["header"] = header.Bytes()
	return bad
}

func TestEveryBadMailMakesOneEventAndDelaysNoOther(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("bad", "drops", "good")})
	bad := badMails()
	good := newGenerator("good", "sales@example.org").mixed(40)
	for i, raw := range good {
		deliver(t, server, "good", "INBOX", raw)
		deliver(t, server, "bad", "INBOX", raw)
		if i == 20 { // in the middle of the others
			for _, mail := range bad {
				deliver(t, server, "bad", "INBOX", mail)
				deliver(t, server, "drops", "INBOX", mail)
			}
		}
	}
	posthorn := start(t, settings{
		sources: file(on(server, "bad", "imap", ""), on(server, "drops", "pop3", "delete_fetched: true"),
			on(server, "good", "imap", "")),
		ports: []int{server.Port("imap"), server.Port("pop3")},
	})
	broker := posthorn.broker()
	broker.awaitEvents("good", len(good), soon)
	broker.oneEventEach("good", good)
	broker.awaitEvents("bad", len(bad)+len(good), long)
	broker.awaitEvents("drops", len(bad), long)
	eventually(t, long, func() (bool, string) {
		n := broker.count(contract.StreamDispositions, "mailbox.v1.disposed.>")
		return n >= 2*(len(bad)+len(good)), fmt.Sprintf("%d mails are tidied", n)
	})
	for _, e := range broker.read(contract.StreamDispositions, "mailbox.v1.disposed.>") {
		var d contract.Disposed
		if err := json.Unmarshal(e.Body, &d); err != nil {
			t.Fatal(err)
		}
		if d.Outcome != contract.OutcomeArchived && d.Outcome != contract.OutcomeDeleted {
			raw, err := broker.ask(contract.ContentSubject(contract.ContentRaw, d.Source.ID, d.Mail), nil)
			t.Errorf("%s: %s %s: %v: %.200q", d.Source.ID, d.Outcome, d.Reason, err, raw)
		}
	}
	if t.Failed() {
		return // these mails will stay where they are
	}
	for _, id := range []string{"bad", "drops", "good"} {
		awaitMails(t, server, id, "INBOX", 0)
	}
	posthorn.cycled("bad", "drops", "good")
	perKey := map[string]int{}
	statuses := map[string]string{}
	for _, e := range append(broker.events("bad"), broker.events("drops")...) {
		r := e.request(t)
		perKey[r.Mail]++
		statuses[strings.Trim(r.MessageID, "<>")] = r.Parse.Status
		valid(t, e.Header.Get(contract.HeaderType), e.Body)
	}
	for key, n := range perKey {
		if n != 1 {
			t.Errorf("mail %s has made %d events", key, n)
		}
	}
	if len(perKey) != 2*len(bad)+len(good) {
		t.Errorf("%d mails have made %d events", 2*len(bad)+len(good), len(perKey))
	}
	for _, name := range []string{"parts", "levels", "header"} {
		if got := statuses[name+"@customer.example"]; got != "limits" {
			t.Errorf("the mail %q has the status %q", name, got)
		}
	}
	if n := broker.count(contract.StreamDeadLetters, ">"); n > 0 {
		t.Errorf("%d mails were set aside", n)
	}
}
