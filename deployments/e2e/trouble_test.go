package e2e

import (
	"strings"
	"testing"

	"posthorn/pkg/mailbox/mailboxtest"
)

// One broken source delays no other, is told within a minute in plain words, and comes back when its cause has gone.
func TestBrokenSourcesSayWhyDelayNobodyAndComeBack(t *testing.T) {
	t.Parallel()
	server := dovecot(t, mailboxtest.DovecotOptions{Users: users("healthy", "wrong", "unknown", "hanging")})
	hanging := newProxy(t, server.Addr("imap"))
	hanging.beSilent(true)
	mails := map[string][][]byte{}
	for _, name := range []string{"healthy", "wrong", "unknown", "hanging"} {
		mails[name] = newGenerator(name, "sales@example.org").mixed(60)[:40]
		deliver(t, server, name, "INBOX", mails[name]...)
	}
	good := map[string]account{}
	for name := range mails {
		good[name] = on(server, name, "imap", "")
	}
	silent := good["hanging"]
	silent.port = hanging.port()
	wrong, unknown := good["wrong"], good["unknown"]
	wrong.password = "not the password"
	unknown.server = "mail.nosuch.invalid"
	posthorn := start(t, settings{
		sources: file(good["healthy"], wrong, unknown, silent), ports: []int{server.Port("imap"), hanging.port()},
	})
	broker := posthorn.broker()
	broker.awaitEvents("healthy", 40, soon)
	broker.oneEventEach("healthy", mails["healthy"])
	awaitMails(t, server, "healthy", "INBOX", 0)

	for id, want := range map[string]struct{ code, words string }{
		"wrong":   {"auth.rejected", "password"},
		"unknown": {"dns.no_such_host", "no such host is known"},
		"hanging": {"protocol.timeout", ""},
	} {
		eventually(t, soon, func() (bool, string) {
			s := posthorn.source(id)
			return s.State == "failing" && s.Error != nil && s.Error.Code == want.code &&
				strings.Contains(strings.ToLower(s.Error.Text), want.words), s.String()
		})
		s := posthorn.source(id)
		t.Logf("%s", s)
		if strings.Contains(s.Error.Text, wrong.password) || s.NextTry.IsZero() {
			t.Errorf("%s: next try at %s", s, s.NextTry)
		}
	}
	if s := posthorn.source("healthy"); s.State != "ok" {
		t.Errorf("%s", s)
	}
	if _, code := posthorn.do("status", "--check"); code != 2 {
		t.Errorf("status --check ends with %d", code)
	}
	if strings.Contains(posthorn.log.String(), wrong.password) {
		t.Error("the log holds a password")
	}

	hanging.beSilent(false)
	posthorn.apply(file(good["healthy"], good["wrong"], good["unknown"], silent))
	for _, id := range []string{"wrong", "unknown", "hanging"} {
		broker.awaitEvents(id, 40, long)
		broker.oneEventEach(id, mails[id])
		awaitMails(t, server, id, "INBOX", 0)
		eventually(t, soon, func() (bool, string) {
			s := posthorn.source(id)
			return s.State == "ok" && s.Error == nil, s.String()
		})
	}
}
