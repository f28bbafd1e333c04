package e2e

import (
	"testing"

	"posthorn/pkg/contract"
	"posthorn/pkg/embeddednats"
	"posthorn/pkg/mailbox/mailboxtest"
)

// The stages as processes of their own, over a NATS server that is somebody else's.
func TestTheStagesRunAsProcessesOfTheirOwn(t *testing.T) {
	t.Parallel()
	nats, err := embeddednats.Start(t.Context(), embeddednats.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nats.Shutdown)
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("sales", "drops")})
	mails := newGenerator("split", "sales@example.org").mixed(120)
	deliver(t, server, "sales", "INBOX", mails...)
	deliver(t, server, "drops", "INBOX", mails...)
	with := func(stages string) []string {
		return []string{"--stages", stages, "--nats", nats.ClientURL(), "--assume-durable"}
	}
	mailboxes := start(t, settings{
		sources: file(on(server, "sales", "imap", ""), on(server, "drops", "pop3", "delete_fetched: true")),
		ports:   []int{server.Port("imap"), server.Port("pop3")}, arguments: with("fetcher,archiver"),
	})
	parser := start(t, settings{arguments: with("parser")})
	broker := dial(t, nats.ClientURL())
	if n := broker.count(contract.StreamContactRequests, "contact-request.v1.>"); n != 0 {
		t.Errorf("%d events without a router", n)
	}
	router := start(t, settings{arguments: with("router")})
	for _, id := range []string{"sales", "drops"} {
		broker.awaitEvents(id, 30, long)
	}
	parser.kill() // others take over, and it comes back
	router.kill()
	second := start(t, settings{arguments: with("parser,router")})
	parser.start()
	router.start()
	for _, id := range []string{"sales", "drops"} {
		broker.awaitEvents(id, len(mails), long)
		awaitMails(t, server, id, "INBOX", 0)
	}
	mailboxes.cycled("sales", "drops")
	for _, id := range []string{"sales", "drops"} {
		broker.oneEventEach(id, mails)
	}
	sameMails(t, "the archive", raws(t, server, "sales", "Archive"), mails)
	if n := broker.count(contract.StreamDeadLetters, ">"); n > 0 {
		t.Errorf("%d mails were set aside", n)
	}
	for _, p := range []*program{mailboxes, parser, router, second} {
		if code := p.stop(); code != 0 {
			t.Errorf("%v ended with %d", p.arguments, code)
		}
	}
}
