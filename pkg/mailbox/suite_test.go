package mailbox_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/mailbox/mailboxtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// account is one mail account on some server, as the suite needs it.
type account struct {
	settings mailbox.Settings
	deliver  func(t *testing.T, raw []byte)
	inbox    func(t *testing.T) []mailboxtest.Mail
	// archived is nil where there is no archive.
	archived func(t *testing.T) []mailboxtest.Mail
	// deleteFlags and archiveFlags say that a mail stays in the Inbox then, flagged.
	deleteFlags, archiveFlags bool
}

func raw(n int) []byte {
	return []byte(fmt.Sprintf("Message-ID: <mail%d@example.org>\r\nFrom: Anna <anna@example.org>\r\n"+
		"To: sales@example.org\r\n"+
		"Subject: Mail %d\r\nDate: Mon, 23 Nov 2026 10:00:00 +0200\r\n\r\nHello %d\r\n.hidden\r\n..two\r\n", n, n, n))
}

func open(t *testing.T, s mailbox.Settings, mode mailbox.Mode) mailbox.Session {
	t.Helper()
	if s.Timeout == 0 {
		s.Timeout = 5 * time.Second
	}
	session, err := mailbox.Open(t.Context(), s, mode)
	if err != nil {
		t.Fatalf("open: %v: %v", err, errors.Unwrap(err))
	}
	t.Cleanup(func() { _ = session.Close() })
	return session
}

// read lists and fetches everything, and makes targets of it.
func read(t *testing.T, session mailbox.Session) (targets []mailbox.Target, bodies [][]byte) {
	t.Helper()
	entries, err := session.List(t.Context())
	if err != nil {
		t.Fatalf("list: %v: %v", err, errors.Unwrap(err))
	}
	infos, err := session.Describe(t.Context(), entries)
	if err != nil {
		t.Fatalf("describe: %v", err)
	}
	for i := range entries {
		entries[i] = infos[i].Entry
	}
	err = session.Fetch(t.Context(), entries, func(e mailbox.Entry, size int64, body io.Reader) error {
		b, err := io.ReadAll(body)
		if err != nil {
			return err
		}
		bodies = append(bodies, b)
		targets = append(targets, target(session, e, b))
		return nil
	})
	if err != nil {
		t.Fatalf("fetch: %v: %v", err, errors.Unwrap(err))
	}
	return targets, bodies
}

func target(session mailbox.Session, e mailbox.Entry, body []byte) mailbox.Target {
	sum := sha256.Sum256(body)
	header, _, _ := bytes.Cut(body, []byte("\r\n\r\n"))
	place := contract.Place{Protocol: "imap", UIDValidity: session.Status().UIDValidity, UID: e.UID, Size: e.Size,
		Fingerprint: mailbox.Fingerprint(header)}
	if e.UID == 0 {
		place.Protocol, place.UIDL = "pop3", e.UIDL
	}
	id := ""
	if _, rest, ok := bytes.Cut(header, []byte("Message-ID: ")); ok {
		line, _, _ := bytes.Cut(rest, []byte("\r\n"))
		id = string(line)
	}
	return mailbox.Target{Place: place, SHA256: hex.EncodeToString(sum[:]), MessageID: id}
}

func dispose(t *testing.T, s mailbox.Settings, what contract.Disposition, targets []mailbox.Target) []mailbox.Result {
	t.Helper()
	session := open(t, s, mailbox.Write)
	results, err := session.Dispose(t.Context(), what, "Archive", targets)
	if err != nil {
		t.Fatalf("dispose: %v: %v", err, errors.Unwrap(err))
	}
	return results
}

func outcomes(results []mailbox.Result) string {
	var all []string
	for _, r := range results {
		if r.Err != nil {
			all = append(all, string(fault.CodeOf(r.Err)))
		} else {
			all = append(all, r.Outcome)
		}
	}
	return strings.Join(all, " ")
}

// suite is what every server must do with every account: new is called for a fresh one.
func suite(t *testing.T, fresh func(t *testing.T) account) {
	t.Run("reading leaves no trace and every byte is right", func(t *testing.T) {
		a := fresh(t)
		var want [][]byte
		for n := range 5 {
			want = append(want, raw(n))
			a.deliver(t, raw(n))
		}
		session := open(t, a.settings, mailbox.Read)
		_, bodies := read(t, session)
		if len(bodies) != len(want) {
			t.Fatalf("%d mails", len(bodies))
		}
		for i := range want {
			if !bytes.Equal(bodies[i], want[i]) {
				t.Errorf("mail %d: %q", i, bodies[i])
			}
		}
		entries, err := session.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		err = session.Headers(t.Context(), entries, func(_ mailbox.Entry, header []byte) error {
			if got := raw(n); !bytes.HasPrefix(got, header) || !bytes.HasSuffix(header, []byte("\r\n\r\n")) {
				t.Errorf("header %d: %q", n, header)
			}
			n++
			return nil
		})
		if err != nil || n != len(want) {
			t.Fatalf("%d headers, %v", n, err)
		}
		for _, m := range a.inbox(t) {
			if slices.Contains(m.Flags, `\Seen`) {
				t.Error("a mail was marked as read")
			}
		}
	})
	t.Run("only what was ordered is deleted", func(t *testing.T) {
		a := fresh(t)
		for n := range 4 {
			a.deliver(t, raw(n))
		}
		session := open(t, a.settings, mailbox.Read)
		targets, _ := read(t, session)
		if err := session.Close(); err != nil {
			t.Fatal(err)
		}
		results := dispose(t, a.settings, contract.Delete, targets[1:3])
		want := "deleted deleted"
		if a.deleteFlags {
			want = "flagged flagged"
		}
		if got := outcomes(results); got != want {
			t.Fatalf("outcomes %q", got)
		}
		left := a.inbox(t)
		if a.deleteFlags {
			left = slices.DeleteFunc(left, func(m mailboxtest.Mail) bool { return slices.Contains(m.Flags, `\Deleted`) })
		}
		if len(left) != 2 || !bytes.Equal(left[0].Raw, raw(0)) || !bytes.Equal(left[1].Raw, raw(3)) {
			t.Fatalf("left: %d", len(left))
		}
		// Once more: no longer there is success.
		if a.deleteFlags {
			return
		}
		if got := outcomes(dispose(t, a.settings, contract.Delete, targets[1:3])); got != "gone gone" {
			t.Fatalf("again: %q", got)
		}
	})
	t.Run("another mail at the place is not touched", func(t *testing.T) {
		a := fresh(t)
		a.deliver(t, raw(1))
		session := open(t, a.settings, mailbox.Read)
		targets, _ := read(t, session)
		if err := session.Close(); err != nil {
			t.Fatal(err)
		}
		targets[0].Place.Fingerprint = mailbox.Fingerprint([]byte("Subject: other\r\n"))
		want := "mismatch"
		if targets[0].Place.UID == 0 && targets[0].Place.UIDL == "" {
			// Without UIDL the digest is all there is to know a mail by.
			targets[0].SHA256 = strings.Repeat("0", 64)
			want = "gone"
		}
		if got := outcomes(dispose(t, a.settings, contract.Delete, targets)); got != want {
			t.Fatalf("outcomes %q", got)
		}
		if len(a.inbox(t)) != 1 {
			t.Fatal("the mail is gone")
		}
	})
	t.Run("archive", func(t *testing.T) {
		a := fresh(t)
		if a.archived == nil {
			a.deliver(t, raw(1))
			session := open(t, a.settings, mailbox.Write)
			targets, _ := read(t, session)
			if _, err := session.Dispose(t.Context(), contract.Archive, "Archive", targets); err == nil {
				t.Fatal("archived where there is no archive")
			}
			return
		}
		for n := range 5 {
			a.deliver(t, raw(n))
		}
		session := open(t, a.settings, mailbox.Read)
		targets, _ := read(t, session)
		results := dispose(t, a.settings, contract.Archive, targets[:3])
		want := "archived archived archived"
		if a.archiveFlags {
			want = "flagged flagged flagged"
		}
		if got := outcomes(results); got != want {
			t.Fatalf("outcomes %q: %v", got, errors.Unwrap(results[0].Err))
		}
		archived := a.archived(t)
		if len(archived) != 3 {
			t.Fatalf("%d mails in the archive", len(archived))
		}
		for i, m := range archived {
			if !bytes.Equal(m.Raw, raw(i)) || slices.Contains(m.Flags, `\Deleted`) || slices.Contains(m.Flags, `\Seen`) {
				t.Errorf("archived mail %d: %q %v", i, m.Raw, m.Flags)
			}
		}
		left := slices.DeleteFunc(a.inbox(t), func(m mailboxtest.Mail) bool { return slices.Contains(m.Flags, `\Deleted`) })
		if len(left) != 2 {
			t.Fatalf("%d mails left", len(left))
		}
		// An order that is carried out again changes nothing.
		dispose(t, a.settings, contract.Archive, targets[:3])
		if n := len(a.archived(t)); n != 3 {
			t.Fatalf("%d mails in the archive after a repeat", n)
		}
	})
	t.Run("waiting ends", func(t *testing.T) {
		a := fresh(t)
		session := open(t, a.settings, mailbox.Read)
		if err := session.Wait(t.Context(), 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		began := time.Now()
		if err := session.Wait(ctx, time.Minute); !errors.Is(err, context.Canceled) {
			t.Fatalf("%v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("cancelling took %v", took)
		}
	})
}

func imapAccount(t *testing.T, options mailboxtest.IMAPOptions) account {
	t.Helper()
	s, err := mailboxtest.StartIMAP(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return account{
		settings: s.Settings("user"),
		deliver:  func(_ *testing.T, raw []byte) { s.Deliver("user", "INBOX", raw) },
		inbox:    func(*testing.T) []mailboxtest.Mail { return s.Mails("user", "INBOX") },
		archived: func(*testing.T) []mailboxtest.Mail { return s.Mails("user", options.Prefix+"Archive") },
		// Deleting cannot be finished without UIDPLUS, whether there is MOVE or not.
		deleteFlags:  slices.Contains(options.Without, "UIDPLUS"),
		archiveFlags: slices.Contains(options.Without, "UIDPLUS") && slices.Contains(options.Without, "MOVE"),
	}
}

func TestIMAPWithEveryMixOfCapabilities(t *testing.T) {
	for name, without := range map[string][]string{
		"all":               nil,
		"no MOVE":           {"MOVE"},
		"no MOVE, no IDLE":  {"MOVE", "IDLE"},
		"no UIDPLUS":        {"UIDPLUS"},
		"neither":           {"MOVE", "UIDPLUS", "ESEARCH"},
		"none of them":      {"MOVE", "UIDPLUS", "ESEARCH", "IDLE", "NAMESPACE", "SPECIAL-USE"},
		"no IDLE, no names": {"IDLE", "NAMESPACE"},
	} {
		t.Run(name, func(t *testing.T) {
			suite(t, func(t *testing.T) account {
				return imapAccount(t, mailboxtest.IMAPOptions{Without: without})
			})
		})
	}
}

func TestIMAPBelowAPrefixWithSTARTTLS(t *testing.T) {
	suite(t, func(t *testing.T) account {
		return imapAccount(t, mailboxtest.IMAPOptions{Prefix: "INBOX.", Security: mailbox.StartTLS})
	})
}

func TestPOP3(t *testing.T) {
	for name, options := range map[string]mailboxtest.POP3Options{
		"all":     {Lock: true},
		"STLS":    {Security: mailbox.StartTLS},
		"no CAPA": {Without: []string{"CAPA", "TOP"}},
		"no UIDL": {Without: []string{"UIDL"}},
	} {
		t.Run(name, func(t *testing.T) {
			suite(t, func(t *testing.T) account {
				s, err := mailboxtest.StartPOP3(options)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = s.Close() })
				return account{
					settings: s.Settings("user"),
					deliver:  func(_ *testing.T, raw []byte) { s.Deliver("user", raw) },
					inbox:    func(*testing.T) []mailboxtest.Mail { return s.Mails("user") },
				}
			})
		})
	}
}

func TestDovecot(t *testing.T) {
	for _, prefix := range []string{"", "INBOX."} {
		users := map[string]string{}
		for n := range 40 {
			users[fmt.Sprintf("user%d", n)] = "secret"
		}
		server := mailboxtest.StartDovecot(t, mailboxtest.DovecotOptions{Users: users, Prefix: prefix})
		next := 0
		for _, protocol := range []mailbox.Protocol{mailbox.IMAP, mailbox.POP3} {
			for _, security := range []mailbox.Security{mailbox.ImplicitTLS, mailbox.StartTLS, mailbox.Plain} {
				if prefix != "" && (protocol == mailbox.POP3 || security != mailbox.ImplicitTLS) {
					continue
				}
				t.Run(fmt.Sprintf("%s %s %s", protocol, security, prefix), func(t *testing.T) {
					suite(t, func(t *testing.T) account {
						user := fmt.Sprintf("user%d", next)
						next++
						a := account{
							settings: server.Settings(protocol, security, user),
							deliver: func(t *testing.T, raw []byte) {
								if err := server.Deliver(user, "INBOX", raw); err != nil {
									t.Fatal(err)
								}
							},
							inbox: func(t *testing.T) []mailboxtest.Mail { return dovecotMails(t, server, user, "INBOX") },
						}
						if protocol == mailbox.IMAP {
							a.archived = func(t *testing.T) []mailboxtest.Mail {
								return dovecotMails(t, server, user, prefix+"Archive")
							}
						}
						return a
					})
				})
			}
		}
	}
}

func dovecotMails(t *testing.T, server *mailboxtest.Dovecot, user, name string) []mailboxtest.Mail {
	t.Helper()
	mails, err := server.Mails(user, name)
	if err != nil {
		t.Fatal(err)
	}
	return mails
}

func TestDovecotSaysWhenThereAreTooManyConnections(t *testing.T) {
	server := mailboxtest.StartDovecot(t, mailboxtest.DovecotOptions{MaxConnections: 1})
	for protocol, want := range map[mailbox.Protocol]fault.Code{
		mailbox.IMAP: fault.LimitConnections, mailbox.POP3: fault.LimitInUse,
	} {
		s := server.Settings(protocol, mailbox.ImplicitTLS, "user")
		open(t, s, mailbox.Read)
		wantFault(t, opening(t, s), want)
	}
}

func TestDovecotsMarkedArchiveAndRights(t *testing.T) {
	server := mailboxtest.StartDovecot(t, mailboxtest.DovecotOptions{
		Mailboxes:   map[string]string{"Arkisto": `\Archive`, "Lähetetyt R&D": `\Sent`},
		Plugins:     []string{"acl"},
		IMAPPlugins: []string{"imap_acl"},
		Extra:       "plugin {\n  acl = vfile\n}",
	})
	for n := range 2 {
		if err := server.Deliver("user", "INBOX", raw(n)); err != nil {
			t.Fatal(err)
		}
	}
	s := server.Settings(mailbox.IMAP, mailbox.StartTLS, "user")
	s.Timeout = 5 * time.Second
	steps := map[string]mailbox.Step{}
	err := mailbox.Test(t.Context(), s, mailbox.TestOptions{Disposition: contract.Archive, Archive: "Archive"},
		func(step mailbox.Step) { steps[step.Name] = step })
	if err != nil {
		t.Fatal(err)
	}
	if steps["rights"].Status != mailbox.StepOK || steps["archive"].Facts["mailbox"] != "Arkisto" {
		t.Errorf("steps %v", steps)
	}
	session := open(t, s, mailbox.Read)
	targets, _ := read(t, session)
	cursor, err := session.Sent(t.Context(), mailbox.SentCursor{}, func(mailbox.SentMail) error { return nil })
	if err != nil || cursor.Mailbox != "Lähetetyt R&D" {
		t.Errorf("%v, %v", cursor, err)
	}
	results := dispose(t, s, contract.Archive, targets)
	if outcomes(results) != "archived archived" || results[0].Mailbox != "Arkisto" {
		t.Errorf("%q in %q", outcomes(results), results[0].Mailbox)
	}
}

func TestNewMailOnDovecotEndsTheWait(t *testing.T) {
	server := mailboxtest.StartDovecot(t, mailboxtest.DovecotOptions{})
	session := open(t, server.Settings(mailbox.IMAP, mailbox.ImplicitTLS, "user"), mailbox.Read)
	if _, err := session.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, func() {
		if err := server.Deliver("user", "INBOX", raw(1)); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	if err := session.Wait(t.Context(), 2*time.Minute); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 60*time.Second {
		t.Errorf("it took %v", took)
	}
	entries, err := session.List(t.Context())
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestDovecotOnStandardPorts(t *testing.T) {
	host := fmt.Sprintf("127.78.%d.%d", time.Now().UnixNano()%250, time.Now().UnixNano()/1000%250+1)
	server := mailboxtest.StartDovecot(t, mailboxtest.DovecotOptions{Host: host, StandardPorts: true})
	for _, protocol := range []mailbox.Protocol{mailbox.IMAP, mailbox.POP3} {
		s := server.Settings(protocol, mailbox.StartTLS, "user")
		if s.Port != 143 && s.Port != 110 {
			t.Errorf("port %d", s.Port)
		}
		open(t, s, mailbox.Read)
	}
}
