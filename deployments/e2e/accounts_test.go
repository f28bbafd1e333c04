package e2e

import (
	"fmt"
	"strings"
	"testing"

	"posthorn/pkg/mailbox/mailboxtest"
)

// account is one source as a sources file has it.
type account struct {
	id       string
	protocol string // default imap
	server   string
	port     int
	user     string
	password string
	ssl      bool
	workflow string // default sales
	more     string // further lines of YAML, `key: value` each
}

// file makes a sources file.
func file(accounts ...account) string {
	var out strings.Builder
	out.WriteString("workflows:\n  - {id: sales, name: Sales, published: true}\n" +
		"  - {id: support, name: Support, published: true}\nsources:\n")
	for _, a := range accounts {
		if a.protocol == "" {
			a.protocol = "imap"
		}
		if a.workflow == "" {
			a.workflow = "sales"
		}
		fmt.Fprintf(&out, "  - id: %s\n    name: The source %s\n    default_workflow: %s\n    type: %s\n"+
			"    address: %s@example.org\n    server: %s\n    port: %d\n    username: %s\n    password: %s\n    ssl: %t\n",
			a.id, a.id, a.workflow, a.protocol, a.id, a.server, a.port, a.user, a.password, a.ssl)
		if !strings.Contains(a.more, "poll_interval") {
			a.more += "\npoll_interval: 5s"
		}
		for line := range strings.SplitSeq(strings.TrimSpace(a.more), "\n") {
			out.WriteString("    " + strings.TrimSpace(line) + "\n")
		}
	}
	return out.String()
}

// on is the account of a user on a Dovecot, over plain text.
func on(d *mailboxtest.Dovecot, id, protocol, more string) account {
	return account{
		id: id, protocol: protocol, server: d.Host(), port: d.Port(protocol), user: id,
		password: "secret of " + id, more: more,
	}
}

// users makes users with the passwords that on expects.
func users(names ...string) map[string]string {
	all := map[string]string{}
	for _, name := range names {
		all[name] = "secret of " + name
	}
	return all
}

// deliver puts mails into a mailbox.
func deliver(t *testing.T, d *mailboxtest.Dovecot, user, mailbox string, mails ...[]byte) {
	t.Helper()
	for _, raw := range mails {
		if err := d.Deliver(user, mailbox, raw); err != nil {
			t.Fatal(err)
		}
	}
}

// raws are the bytes of the mails in a mailbox.
func raws(t *testing.T, d *mailboxtest.Dovecot, user, mailbox string) [][]byte {
	t.Helper()
	mails, err := d.Mails(user, mailbox)
	if err != nil {
		t.Fatal(err)
	}
	bytes := make([][]byte, len(mails))
	for i, mail := range mails {
		bytes[i] = mail.Raw
	}
	return bytes
}

// awaitMails waits until a mailbox holds n mails.
func awaitMails(t *testing.T, d *mailboxtest.Dovecot, user, mailbox string, n int) {
	t.Helper()
	eventually(t, long, func() (bool, string) {
		got := len(raws(t, d, user, mailbox))
		return got == n, fmt.Sprintf("%s of %s holds %d mails, want %d", mailbox, user, got, n)
	})
}

// untouched fails the test unless an Inbox that is read by IMAP holds these mails, byte for byte and without any flag.
// (POP3 knows no flags: what Dovecot sets when it has sent a mail by POP3 is its own affair.)
func untouched(t *testing.T, d *mailboxtest.Dovecot, user, mailbox string, want [][]byte) {
	t.Helper()
	mails, err := d.Mails(user, mailbox)
	if err != nil {
		t.Fatal(err)
	}
	flagged := map[string]int{}
	for _, mail := range mails {
		for _, flag := range mail.Flags {
			flagged[flag]++
		}
	}
	if len(flagged) > 0 {
		t.Errorf("of %d mails in %s of %s are flagged: %v", len(mails), mailbox, user, flagged)
	}
	sameMails(t, mailbox+" of "+user, raws(t, d, user, mailbox), want)
}
