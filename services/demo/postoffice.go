// Package demo is the post office of `posthorn demo`: an IMAP and a POP3 server on the loopback interface with three
// accounts, into which realistic mail keeps arriving. Any mail client can open them.
package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"posthorn/pkg/mailbox"
	"posthorn/pkg/mailbox/mailboxtest"
)

const (
	host     = "127.0.0.1"
	password = "posthorn"

	sales   = "sales@posthorn.example"
	support = "support@posthorn.example"
	info    = "info@posthorn.example"

	inbox = "INBOX"
	sent  = "Sent"
)

// Account is one mail account of the post office, as a mail client needs it.
type Account struct {
	// ID of the source that drains it.
	ID       string
	Name     string
	Workflow string
	Protocol mailbox.Protocol
	Host     string
	Port     int
	// User is also the account's address.
	User     string
	Password string
	// RepliesOnly is how its source is set.
	RepliesOnly bool
}

// Office is a running post office.
type Office struct {
	imap    *mailboxtest.IMAP
	pop3    *mailboxtest.POP3
	mail    *correspondence
	arrived int
}

// Open starts the servers, with mails in the Sent mailboxes. Nothing has arrived yet. Close it.
func Open() (*Office, error) {
	imap, err := mailboxtest.StartIMAP(mailboxtest.IMAPOptions{
		Security: mailbox.Plain, Users: map[string]string{sales: password, support: password},
	})
	if err != nil {
		return nil, err
	}
	pop3, err := mailboxtest.StartPOP3(mailboxtest.POP3Options{
		Security: mailbox.Plain, Users: map[string]string{info: password},
	})
	if err != nil {
		return nil, errors.Join(err, imap.Close())
	}
	o := &Office{imap: imap, pop3: pop3, mail: newCorrespondence()}
	yesterday := time.Now().Add(-24 * time.Hour)
	for _, l := range o.mail.sent {
		o.imap.DeliverAt(support, sent, l.write(yesterday), yesterday, `\Seen`)
	}
	return o, nil
}

// Close ends both servers.
func (o *Office) Close() error { return errors.Join(o.imap.Close(), o.pop3.Close()) }

// Accounts are all accounts, in a fixed order.
func (o *Office) Accounts() []Account {
	return []Account{
		{
			ID: "sales", Name: "Sales inbox", Workflow: "sales", Protocol: mailbox.IMAP, Host: host,
			Port: o.imap.Port(), User: sales, Password: password,
		},
		{
			ID: "support", Name: "Support, replies only", Workflow: "support", Protocol: mailbox.IMAP, Host: host,
			Port: o.imap.Port(), User: support, Password: password, RepliesOnly: true,
		},
		{
			ID: "info", Name: "Info maildrop", Workflow: "sales", Protocol: mailbox.POP3, Host: host,
			Port: o.pop3.Port(), User: info, Password: password,
		},
	}
}

// SourcesFile is the sources file that lets Posthorn drain the accounts.
func (o *Office) SourcesFile() []byte {
	var out strings.Builder
	out.WriteString(`workflows:
  - {id: sales, name: Sales, published: true}
  - {id: support, name: Support, published: true}
sources:
`)
	for _, a := range o.Accounts() {
		fmt.Fprintf(&out, `  - id: %s
    name: %q
    description: Mail of the demo
    default_workflow: %s
    type: %s
    address: %s
    server: %s
    port: %d
    username: %s
    password: %s
    ssl: false
    replies_only: %t
    poll_interval: 5s
`, a.ID, a.Name, a.Workflow, a.Protocol, a.User, a.Host, a.Port, a.User, a.Password, a.RepliesOnly)
	}
	return []byte(out.String())
}

// Deliver lets the next n mails arrive.
func (o *Office) Deliver(n int) {
	for range n {
		now := time.Now()
		mail := o.mail.next(o.arrived)
		raw := mail.write(now)
		o.arrived++
		if mail.account == info {
			o.pop3.Deliver(info, raw)
			continue
		}
		o.imap.DeliverAt(mail.account, inbox, raw, now)
	}
}

// Run lets one mail arrive every so often until ctx ends.
func (o *Office) Run(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			o.Deliver(1)
		case <-ctx.Done():
			return
		}
	}
}
