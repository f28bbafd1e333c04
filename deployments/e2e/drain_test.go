package e2e

import (
	"testing"

	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox/mailboxtest"
)

// What is promised for every mail: exactly one event, stored before the mail is moved or deleted, the bytes kept.
func TestEveryMailMakesOneEventAndIsTidiedAsItsSourceSays(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{
		Users: users("archives", "keeps", "deletes", "drops", "leaves", "stays"),
	})
	imapMails := newGenerator("imap", "sales@example.org").mixed(500)
	popMails := newGenerator("pop3", "sales@example.org").mixed(200)
	sources := []account{
		on(server, "archives", "imap", ""), on(server, "keeps", "pop3", ""),
		on(server, "deletes", "imap", "delete_fetched: true"), on(server, "drops", "pop3", "delete_fetched: true"),
		on(server, "leaves", "imap", "after_fetch: leave"), on(server, "stays", "pop3", "after_fetch: leave"),
	}
	mails := map[string][][]byte{}
	ports := []int{server.Port("imap"), server.Port("pop3")}
	for _, s := range sources {
		mails[s.id] = imapMails
		if s.protocol == "pop3" {
			mails[s.id] = popMails
		}
		deliver(t, server, s.user, "INBOX", mails[s.id]...)
	}
	posthorn := start(t, settings{sources: file(sources...), ports: ports})
	broker := posthorn.broker()
	for _, s := range sources {
		broker.awaitEvents(s.id, len(mails[s.id]), long)
		broker.oneEventEach(s.id, mails[s.id])
	}
	check := func() {
		t.Helper()
		awaitMails(t, server, "archives", "INBOX", 0)
		awaitMails(t, server, "deletes", "INBOX", 0)
		awaitMails(t, server, "drops", "INBOX", 0)
		sameMails(t, "the archive", raws(t, server, "archives", "Archive"), imapMails)
		sameMails(t, "the archive of a source that deletes", raws(t, server, "deletes", "Archive"), nil)
		sameMails(t, "the maildrop that is kept", raws(t, server, "keeps", "INBOX"), popMails)
		untouched(t, server, "leaves", "INBOX", imapMails)
		sameMails(t, "the maildrop that is left", raws(t, server, "stays", "INBOX"), popMails)
		if n := broker.count(contract.StreamDeadLetters, ">"); n > 0 {
			t.Errorf("%d mails were set aside", n)
		}
	}
	check()

	if code := posthorn.stop(); code != 0 {
		t.Fatalf("posthorn ended with %d", code)
	}
	posthorn.start()
	broker = posthorn.broker()
	posthorn.cycled("archives", "keeps", "deletes", "drops", "leaves", "stays")
	for _, s := range sources {
		broker.oneEventEach(s.id, mails[s.id])
	}
	check()
	for _, s := range posthorn.status().Sources {
		if s.State != "ok" || s.Unaccounted > 0 || s.Waiting > 0 {
			t.Errorf("afterwards %s", s)
		}
	}
}
