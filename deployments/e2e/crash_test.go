package e2e

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox/mailboxtest"
)

func TestKilledAgainAndAgainItLosesNothingAndDoublesNothing(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("archives", "keeps")})
	imapMails := newGenerator("imap", "sales@example.org").mixed(500)
	popMails := newGenerator("pop3", "sales@example.org").mixed(200)
	deliver(t, server, "archives", "INBOX", imapMails...)
	deliver(t, server, "keeps", "INBOX", popMails...)
	posthorn := start(t, settings{
		sources: file(on(server, "archives", "imap", ""), on(server, "keeps", "pop3", "")),
		ports:   []int{server.Port("imap"), server.Port("pop3")},
	})
	for _, at := range []int{0, 50, 170, 330, 500, 640} {
		broker := posthorn.broker()
		eventually(t, long, func() (bool, string) {
			n := broker.count(contract.StreamContactRequests, "contact-request.v1.>")
			return n >= at, fmt.Sprintf("%d events of %d", n, at)
		})
		broker.conn.Close()
		posthorn.kill()
		killed := time.Now()
		moved := raws(t, server, "archives", "Archive")
		posthorn.start()
		stored := keys(posthorn.broker().events("archives"), killed)
		for i, raw := range moved {
			if !stored[contract.MailKey("archives", sha256.Sum256(raw))] {
				t.Errorf("mail %d of the archive was moved before its event was stored", i)
			}
		}
		t.Logf("killed after %d events of %d mails, with %d mails moved", len(stored), len(imapMails), len(moved))
	}
	began := time.Now()
	broker := posthorn.broker()
	broker.awaitEvents("archives", 500, 50*time.Second)
	broker.awaitEvents("keeps", 200, 50*time.Second)
	awaitMails(t, server, "archives", "INBOX", 0)
	t.Logf("all was done %s after the last start", time.Since(began).Round(100*time.Millisecond))
	if time.Since(began) > 50*time.Second {
		t.Errorf("it took %s", time.Since(began))
	}
	posthorn.cycled("archives", "keeps")
	broker.oneEventEach("archives", imapMails)
	broker.oneEventEach("keeps", popMails)
	sameMails(t, "the archive", raws(t, server, "archives", "Archive"), imapMails)
	sameMails(t, "the maildrop", raws(t, server, "keeps", "INBOX"), popMails)
	if n := broker.count(contract.StreamDeadLetters, ">"); n > 0 {
		t.Errorf("%d mails were set aside", n)
	}
}
