package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"

	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox/mailboxtest"
)

func TestAMailOf50MBPassesWithLittleMemory(t *testing.T) {
	binary, err := released()
	if err != nil {
		t.Fatal(err)
	}
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("sales", "drops")})
	g := newGenerator("large", "sales@example.org")
	large := g.attachment(37 << 20) // base64 makes a third more of it
	if len(large) < 50<<20 {
		t.Fatalf("the mail has only %d bytes", len(large))
	}
	for _, user := range []string{"sales", "drops"} {
		deliver(t, server, user, "INBOX", large, g.plain())
	}
	posthorn := start(t, settings{
		binary: binary,
		sources: file(on(server, "sales", "imap", "max_size: 100MB"),
			on(server, "drops", "pop3", "max_size: 100MB\ndelete_fetched: true")),
		ports: []int{server.Port("imap"), server.Port("pop3")},
	})
	broker := posthorn.broker()
	for _, id := range []string{"sales", "drops"} {
		broker.awaitEvents(id, 2, long)
		awaitMails(t, server, id, "INBOX", 0)
		key := contract.MailKey(id, sha256.Sum256(large))
		if n := broker.count(contract.StreamContactRequests, contract.ContactRequestFilter(id, key)); n != 1 {
			t.Errorf("%s: the large mail has made %d events", id, n)
		}
		raw, err := broker.ask(contract.ContentSubject(contract.ContentRaw, id, key), nil)
		if err != nil || sha256.Sum256(raw) != sha256.Sum256(large) {
			t.Errorf("%s: the large mail was read back as %d bytes: %v", id, len(raw), err)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", posthorn.command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var peak int
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			if _, err := fmt.Sscan(value, &peak); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("at its peak the program held %d MB", peak>>10)
	if peak == 0 || peak > 300<<10 {
		t.Errorf("at its peak the program held %d MB", peak>>10)
	}
}
