package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox/mailboxtest"
)

// A source that reads replies only takes in what answers mail sent from its account. Everything else stays in the
// Inbox as it is: not moved, not marked, its body not even downloaded.
func TestOnlyRepliesAreTakenInAndTheRestIsNotEvenDownloaded(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("support")})
	counter := newProxy(t, server.Addr("imap"))

	sent := newGenerator("sent", "customer@customer.example")
	var sentIDs []string
	for range 60 {
		deliver(t, server, "support", "Sent", sent.plain("From", "Support <support@example.org>"))
		sentIDs = append(sentIDs, sent.ids[len(sent.ids)-1])
	}
	inbox := newGenerator("inbox", "support@example.org")
	var replies, rest [][]byte
	var planted []string // texts that stand in the bodies of the rest
	leave := func(raw []byte) {
		rest, planted = append(rest, raw), append(planted, inbox.marker())
	}
	for i := range 50 {
		replies = append(replies, inbox.reply(sentIDs[i]))
		switch {
		case i < 30:
			leave(inbox.plain("Subject", fmt.Sprintf("An enquiry of its own, number %d", i)))
		case i < 40:
			leave(inbox.bounce(sentIDs[i]))
		case i < 45:
			leave(inbox.absent(sentIDs[i]))
		default:
			leave(inbox.newsletter())
		}
	}
	for i := range 50 { // mixed, as they would arrive
		deliver(t, server, "support", "INBOX", replies[i], rest[i])
	}

	source := account{
		id: "support", server: "127.0.0.1", port: counter.port(), user: "support", password: "secret of support",
		more: "replies_only: true",
	}
	posthorn := start(t, settings{sources: file(source), ports: []int{counter.port()}})
	broker := posthorn.broker()
	broker.awaitEvents("support", 50, long)
	awaitMails(t, server, "support", "Archive", 50)
	posthorn.cycled("support")
	broker.oneEventEach("support", replies)
	sameMails(t, "the archive", raws(t, server, "support", "Archive"), replies)
	untouched(t, server, "support", "INBOX", rest)
	if s := posthorn.source("support"); s.Left != 50 || s.TakenIn != 50 || s.State != "ok" || s.Unaccounted != 0 {
		t.Errorf("status says %s", s)
	}
	said, _ := counter.record()
	for _, text := range planted {
		if bytes.Contains(said, []byte(text)) {
			t.Errorf("the body of a mail that is left was downloaded: %s", text)
		}
	}
	if code := posthorn.stop(); code != 0 {
		t.Errorf("posthorn ended with %d", code)
	}
	nowhere(t, posthorn.data, planted)

	// A second run reads nothing of them again, not even a header.
	counter.forget()
	posthorn.start()
	posthorn.cycled("support")
	said, asked := counter.record()
	if bytes.Contains(said, []byte("Subject:")) {
		t.Errorf("headers were read again: %.2000s", asked)
	}
	if len(said) == 0 || len(said) > 20000 {
		t.Errorf("the second run read %d bytes", len(said))
	}
	broker = posthorn.broker()
	broker.oneEventEach("support", replies)
	untouched(t, server, "support", "INBOX", rest)

	// Without the rule all of it is taken in.
	source.more = "replies_only: false"
	posthorn.apply(file(source))
	awaitMails(t, server, "support", "INBOX", 0)
	all := append(replies, rest...)
	broker.oneEventEach("support", all)
	sameMails(t, "the archive", raws(t, server, "support", "Archive"), all)
}

// A reply may arrive before the mail that it answers lies in the Sent mailbox. It waits in the Inbox for that.
func TestAReplyThatCameBeforeItsSentCopyIsTakenInLater(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("support")})
	sent := newGenerator("sent", "customer@customer.example")
	deliver(t, server, "support", "Sent", sent.plain("From", "Support <support@example.org>"))
	late := sent.plain("From", "Support <support@example.org>")
	inbox := newGenerator("inbox", "support@example.org")
	early := inbox.reply(sent.ids[1])
	deliver(t, server, "support", "INBOX", early)

	posthorn := start(t, settings{
		sources: file(on(server, "support", "imap", "replies_only: true")), ports: []int{server.Port("imap")},
	})
	broker := posthorn.broker()
	eventually(t, soon, func() (bool, string) {
		s := posthorn.source("support")
		return s.Left == 1, s.String()
	})
	untouched(t, server, "support", "INBOX", [][]byte{early})
	deliver(t, server, "support", "Sent", late)
	deliver(t, server, "support", "INBOX", inbox.reply(sent.ids[1])) // new mail: the Sent mailbox is read again
	broker.awaitEvents("support", 2, long)
	awaitMails(t, server, "support", "INBOX", 0)
	if n := broker.count(contract.StreamMail, contract.RawSubject("support", contract.MailKey("support",
		sha256.Sum256(early)))); n != 1 {
		t.Errorf("the mail is stored %d times", n)
	}
}

// nowhere fails the test if a text stands in any file below a directory, as it is, in base64 or in quoted-printable.
func nowhere(t *testing.T, dir string, texts []string) {
	t.Helper()
	var needles [][]byte
	for _, text := range texts {
		needles = append(needles, []byte(text), []byte(strings.ReplaceAll(text, "-", "=2D")))
		for shift := range 3 { // base64 has three forms of a text, by where it begins
			encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + text))
			needles = append(needles, []byte(encoded[4:len(encoded)-4]))
		}
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		files++
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, needle := range needles {
			if bytes.Contains(content, needle) {
				t.Errorf("%s holds %q of a mail that was left", path, needle)
			}
		}
		return nil
	})
	if err != nil || files < 10 {
		t.Errorf("only %d files could be searched: %v", files, err)
	}
}
