package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox/mailboxtest"
)

// On the standard ports, encryption is upgraded or there from the first byte, and certificates of a private issuer are
// accepted by its certificate alone.
func TestMailIsFetchedOverSTARTTLSAndTLSWithAPrivateCA(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{
		Host: "127.83.17.4", StandardPorts: true, Users: users("imap143", "imap993", "pop110", "pop995", "untrusting"),
	})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, server.CA().PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	var sources []account
	mails := map[string][][]byte{}
	for id, port := range map[string]int{"imap143": 143, "imap993": 993, "pop110": 110, "pop995": 995, "untrusting": 993} {
		protocol := "imap"
		if strings.HasPrefix(id, "pop") {
			protocol = "pop3"
		}
		source := account{
			id: id, protocol: protocol, server: server.Host(), port: port, user: id, password: "secret of " + id, ssl: true,
			more: "ca_file: " + ca + "\ndelete_fetched: true",
		}
		if id == "untrusting" {
			source.more = ""
		}
		sources = append(sources, source)
		mails[id] = newGenerator(id, "a@example.org").mixed(25)
		deliver(t, server, id, "INBOX", mails[id]...)
	}
	posthorn := start(t, settings{sources: file(sources...)})
	broker := posthorn.broker()
	for id := range mails {
		if id == "untrusting" {
			continue
		}
		broker.awaitEvents(id, 25, long)
		broker.oneEventEach(id, mails[id])
		awaitMails(t, server, id, "INBOX", 0)
	}
	eventually(t, soon, func() (bool, string) {
		s := posthorn.source("untrusting")
		return s.State == "failing" && s.Error != nil && s.Error.Code == "tls.unknown_ca", s.String()
	})
	untouched(t, server, "untrusting", "INBOX", mails["untrusting"])
}

func TestTheArchiveIsMadeInsideTheNamespaceOfTheServer(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{
		Users: users("sales"), Prefix: "INBOX.",
		Mailboxes: map[string]string{"INBOX.Sent": `\Sent`},
	})
	mails := newGenerator("prefix", "sales@example.org").mixed(20)
	deliver(t, server, "sales", "INBOX", mails...)
	posthorn := start(t, settings{sources: file(on(server, "sales", "imap", "")), ports: []int{server.Port("imap")}})
	posthorn.broker().awaitEvents("sales", 20, long)
	awaitMails(t, server, "sales", "INBOX", 0)
	sameMails(t, "INBOX.Archive", raws(t, server, "sales", "INBOX.Archive"), mails)
}

// renumber gives a mailbox of a Dovecot that nobody has open another UIDVALIDITY and its mails new UIDs.
func renumber(t *testing.T, server *mailboxtest.Dovecot, user string) {
	t.Helper()
	dir := server.Maildir(user, "INBOX")
	unused(t, server)
	list := filepath.Join(dir, "dovecot-uidlist")
	content, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`^3 V(\d+)`).FindSubmatch(content)
	if found == nil {
		t.Fatalf("this is no uidlist: %.80q", content)
	}
	var validity uint32
	if _, err := fmt.Sscan(string(found[1]), &validity); err != nil {
		t.Fatal(err)
	}
	old, err := filepath.Glob(filepath.Join(dir, "dovecot.index*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(old, filepath.Join(dir, "dovecot-uidvalidity")) {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	// The list keeps its owner; without lines every mail is given a new UID, from 1000 on.
	if err := os.WriteFile(list, fmt.Appendf(nil, "3 V%d N1000 G%032x\n", validity+77, validity), 0o600); err != nil {
		t.Fatal(err)
	}
}

// unused waits until a Dovecot serves no IMAP client any more.
func unused(t *testing.T, server *mailboxtest.Dovecot) {
	t.Helper()
	base := filepath.Dir(filepath.Dir(server.Maildir("nobody", "INBOX")))
	pid, err := os.ReadFile(filepath.Join(base, "run", "master.pid"))
	if err != nil {
		t.Fatal(err)
	}
	child := fmt.Sprintf("(imap) S %s ", strings.TrimSpace(string(pid)))
	eventually(t, soon, func() (bool, string) {
		processes, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, path := range processes {
			// A process that has ended meanwhile counts for nothing.
			if stat, err := os.ReadFile(path); err == nil && strings.Contains(string(stat), child) {
				n++
			}
		}
		return n == 0, fmt.Sprintf("%d IMAP clients are served", n)
	})
}

func TestARenumberedMailboxMakesNoSecondEvent(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("sales", "leaves")})
	mails := newGenerator("renumbered", "sales@example.org").mixed(120)
	deliver(t, server, "sales", "INBOX", mails...)
	deliver(t, server, "leaves", "INBOX", mails...)
	posthorn := start(t, settings{
		sources: file(on(server, "sales", "imap", ""), on(server, "leaves", "imap", "after_fetch: leave")),
		ports:   []int{server.Port("imap")},
	})
	broker := posthorn.broker()
	broker.awaitEvents("sales", 40, long) // half way
	posthorn.kill()
	for _, user := range []string{"sales", "leaves"} {
		renumber(t, server, user)
	}
	posthorn.start()
	broker = posthorn.broker()
	for _, id := range []string{"sales", "leaves"} {
		broker.awaitEvents(id, len(mails), long)
	}
	awaitMails(t, server, "sales", "INBOX", 0)
	posthorn.cycled("sales", "leaves")
	for _, id := range []string{"sales", "leaves"} {
		broker.oneEventEach(id, mails)
		if n := broker.count(contract.StreamSources, contract.SourceSubject(contract.SourceMailboxReset, id)); n != 1 {
			t.Errorf("%s: the new numbers were told %d times", id, n)
		}
		if s := posthorn.source(id); s.State != "ok" || s.Unaccounted != 0 || s.Waiting != 0 {
			t.Errorf("%s", s)
		}
	}
	sameMails(t, "the archive", raws(t, server, "sales", "Archive"), mails)
	untouched(t, server, "leaves", "INBOX", mails)

	// With a mailbox that was drained completely.
	posthorn.kill()
	renumber(t, server, "leaves")
	posthorn.start()
	posthorn.cycled("sales", "leaves")
	posthorn.broker().oneEventEach("leaves", mails)
	untouched(t, server, "leaves", "INBOX", mails)
}

func TestAMailThatWasMovedBackByHandStaysThere(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("sales")})
	mails := newGenerator("back", "sales@example.org").mixed(5)
	deliver(t, server, "sales", "INBOX", mails...)
	posthorn := start(t, settings{sources: file(on(server, "sales", "imap", "")), ports: []int{server.Port("imap")}})
	broker := posthorn.broker()
	broker.awaitEvents("sales", 5, soon)
	awaitMails(t, server, "sales", "INBOX", 0)
	posthorn.cycled("sales") // it has seen them gone

	moveBack(t, server, "sales", mails[2])
	eventually(t, soon, func() (bool, string) {
		s := posthorn.source("sales")
		return s.Left == 1 && s.State == "ok", s.String()
	})
	posthorn.cycled("sales")
	broker.oneEventEach("sales", mails)
	sameMails(t, "the Inbox", raws(t, server, "sales", "INBOX"), mails[2:3])
	if n := len(raws(t, server, "sales", "Archive")); n != 4 {
		t.Errorf("the archive holds %d mails", n)
	}
}

// moveBack moves a mail from the archive to the Inbox.
func moveBack(t *testing.T, server *mailboxtest.Dovecot, user string, raw []byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(server.Maildir(user, "Archive"), "[cn]*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(content, raw) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			deliver(t, server, user, "INBOX", raw)
			return
		}
	}
	t.Fatalf("the mail is not among the %d in the archive", len(files))
}

func TestAnArchiveThatRefusesIsToldAndHoldsUpNobody(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{
		Users: users("refused", "healthy"), Plugins: []string{"acl"}, Extra: "plugin {\n  acl = vfile:cache_secs=1\n}\n",
	})
	mails := map[string][][]byte{}
	for _, id := range []string{"refused", "healthy"} {
		mails[id] = newGenerator(id, "sales@example.org").mixed(30)
		deliver(t, server, id, "INBOX", mails[id]...)
	}
	deliver(t, server, "refused", "Archive", newGenerator("older", "sales@example.org").plain()) // makes it
	older := raws(t, server, "refused", "Archive")
	rights := filepath.Join(server.Maildir("refused", "Archive"), "dovecot-acl")
	if err := os.WriteFile(rights, []byte("owner lrws\n"), 0o644); err != nil { //nolint:gosec // the server reads it
		t.Fatal(err)
	}
	posthorn := start(t, settings{
		sources: file(on(server, "refused", "imap", ""), on(server, "healthy", "imap", "")),
		ports:   []int{server.Port("imap")},
	})
	broker := posthorn.broker()
	for id := range mails {
		broker.awaitEvents(id, 30, long)
		broker.oneEventEach(id, mails[id])
	}
	awaitMails(t, server, "healthy", "INBOX", 0)
	eventually(t, soon, func() (bool, string) {
		s := posthorn.source("refused")
		return s.State == "degraded" && s.Error != nil && strings.HasPrefix(s.Error.Code, "archive."), s.String()
	})
	t.Logf("%s", posthorn.source("refused"))
	untouched(t, server, "refused", "INBOX", mails["refused"])

	if err := os.Remove(rights); err != nil {
		t.Fatal(err)
	}
	posthorn.must("sources", "retry", "refused")
	awaitMails(t, server, "refused", "INBOX", 0)
	sameMails(t, "the archive", raws(t, server, "refused", "Archive"), append(older, mails["refused"]...))
	eventually(t, soon, func() (bool, string) {
		s := posthorn.source("refused")
		return s.State == "ok", s.String()
	})
	broker.oneEventEach("refused", mails["refused"])
}

func TestTwinsAreOneMailWithManyPlaces(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("sales", "drops")})
	mails := newGenerator("twins", "sales@example.org").mixed(6)
	all := append(append([][]byte{}, mails...), mails[1], mails[4], mails[4])
	deliver(t, server, "sales", "INBOX", all...)
	deliver(t, server, "drops", "INBOX", all...)
	posthorn := start(t, settings{
		sources: file(on(server, "sales", "imap", ""), on(server, "drops", "pop3", "delete_fetched: true")),
		ports:   []int{server.Port("imap"), server.Port("pop3")},
	})
	broker := posthorn.broker()
	for _, id := range []string{"sales", "drops"} {
		broker.awaitEvents(id, len(mails), soon)
		awaitMails(t, server, id, "INBOX", 0)
	}
	posthorn.cycled("sales", "drops")
	broker.oneEventEach("sales", mails)
	broker.oneEventEach("drops", mails)
	sameMails(t, "the archive", raws(t, server, "sales", "Archive"), all)
}

func TestAMailThatIsTooLargeIsToldByItsHeadersAndStays(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("sales", "drops")})
	g := newGenerator("large", "sales@example.org")
	small, large := g.plain(), g.attachment(300<<10)
	marker := g.marker()
	for _, user := range []string{"sales", "drops"} {
		deliver(t, server, user, "INBOX", small, large)
	}
	posthorn := start(t, settings{
		sources: file(on(server, "sales", "imap", "max_size: 100KB\ndelete_fetched: true"),
			on(server, "drops", "pop3", "max_size: 100KB\ndelete_fetched: true")),
		ports: []int{server.Port("imap"), server.Port("pop3")},
	})
	broker := posthorn.broker()
	for _, id := range []string{"sales", "drops"} {
		broker.awaitEvents(id, 2, soon)
		awaitMails(t, server, id, "INBOX", 1)
		posthorn.cycled(id)
		events := broker.events(id)
		if len(events) != 2 {
			t.Fatalf("%s: %d events", id, len(events))
		}
		for _, e := range events {
			r := e.request(t)
			if r.Mail == contract.MailKey(id, sha256.Sum256(small)) {
				continue
			}
			if r.Parse.Status != "limits" || r.Subject != fmt.Sprintf("Mail number %d of large", g.number) || r.Text != "" ||
				bytes.Contains(e.Body, []byte(marker)) {
				t.Errorf("%s: %s", id, e.Body)
			}
		}
		sameMails(t, "the Inbox of "+id, raws(t, server, id, "INBOX"), [][]byte{large})
	}
}
