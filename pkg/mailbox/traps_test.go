package mailbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/mailbox/mailboxtest"
)

// scriptedInbox is an Inbox with one mail, UID 1 of 20 bytes, on a server with the capabilities given. What extra
// answers comes first.
func scriptedInbox(t *testing.T, caps string, extra ...mailboxtest.Answer) (*mailboxtest.Scripted, mailbox.Settings) {
	t.Helper()
	return startScript(t, mailboxtest.Script{Greeting: "* OK ready\r\n", Answers: append(extra,
		capability(caps),
		mailboxtest.Answer{Verb: "LOGIN", Say: "{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "EXAMINE", Say: opened},
		mailboxtest.Answer{Verb: "SELECT", Say: opened},
		mailboxtest.Answer{Verb: "DELETED", Say: "* SEARCH\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "UID SEARCH", Say: "* SEARCH 1\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "BODY.PEEK[HEADER]",
			Say: "* 1 FETCH (UID 1 FLAGS () RFC822.SIZE 20 BODY[HEADER] {16}\r\nSubject: hello\r\n)\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "INTERNALDATE",
			Say: "* 1 FETCH (UID 1 RFC822.SIZE 20 INTERNALDATE \"23-Nov-2026 10:00:00 +0000\")\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "BODY.PEEK[]",
			Say: "* 1 FETCH (UID 1 BODY[] {20}\r\nSubject: hello\r\n\r\nHi)\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "LIST ", Say: "* LIST () \"/\" Archive\r\n{tag} OK\r\n"},
	)})
}

const opened = "* FLAGS (\\Deleted [odd] a]b)\r\n* 1 EXISTS\r\n* OK [UIDVALIDITY 7] ok\r\n* OK [UIDNEXT 2] ok\r\n" +
	"* OK [HIGHESTMODSEQ none]\r\n* OK [PERMANENTFLAGS (\\Deleted [odd] \\*)] ok\r\n{tag} OK [READ-WRITE] open\r\n"

var entry1 = mailbox.Entry{UID: 1, Size: 20}

func target1() mailbox.Target {
	return mailbox.Target{Place: contract.Place{Protocol: "imap", UIDValidity: 7, UID: 1, Size: 20}}
}

func fetchAll(ctx context.Context, session mailbox.Session, entries ...mailbox.Entry) ([]byte, error) {
	var all []byte
	err := session.Fetch(ctx, entries, func(_ mailbox.Entry, _ int64, body io.Reader) error {
		b, err := io.ReadAll(body)
		all = append(all, b...)
		return err
	})
	return all, err
}

func TestAHungServerIsNoticedInEveryCommand(t *testing.T) {
	run := map[string]struct {
		caps, verb string
		mode       mailbox.Mode
		call       func(context.Context, mailbox.Session) error
	}{
		"NOOP":     {"", "NOOP", mailbox.Read, list},
		"SEARCH":   {"", "UID SEARCH", mailbox.Read, list},
		"DELETED":  {"", "DELETED", mailbox.Read, list},
		"describe": {"", "INTERNALDATE", mailbox.Read, describe},
		"headers":  {"", "HEADER]", mailbox.Read, headers},
		"bodies":   {"", "BODY.PEEK[]", mailbox.Read, bodies},
		"idle":     {"IDLE", "IDLE", mailbox.Read, wait},
		"done":     {"IDLE", "DONE", mailbox.Read, wait},
		"move":     {"MOVE", "UID MOVE", mailbox.Write, archive},
		"copy":     {"", "UID COPY", mailbox.Write, archive},
		"flag":     {"", "STORE", mailbox.Write, archive},
		"expunge":  {"UIDPLUS", "EXPUNGE", mailbox.Write, archive},
		"identify": {"", "HEADER]", mailbox.Write, archive},
		"list":     {"", "LIST ", mailbox.Write, archive},
		"prefix":   {"NAMESPACE", "NAMESPACE", mailbox.Write, archive},
		"sent":     {"", "LIST ", mailbox.Read, sent},
	}
	for name, c := range run {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, s := scriptedInbox(t, c.caps, mailboxtest.Answer{Verb: c.verb, Hang: true},
				mailboxtest.Answer{Verb: "IDLE", Say: "+ idling\r\n"})
			session := open(t, s, c.mode)
			began := time.Now()
			wantFault(t, c.call(t.Context(), session), fault.ProtocolTimeout)
			if took := time.Since(began); took > 10*short {
				t.Errorf("it took %v", took)
			}
			s.Timeout = time.Minute
			session = open(t, s, c.mode)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, cancel)
			began = time.Now()
			if err := c.call(ctx, session); !errors.Is(err, context.Canceled) {
				t.Errorf("after cancelling: %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("cancelling took %v", took)
			}
		})
	}
}

func list(ctx context.Context, s mailbox.Session) error {
	_, err := s.List(ctx)
	return err
}

func describe(ctx context.Context, s mailbox.Session) error {
	_, err := s.Describe(ctx, []mailbox.Entry{entry1})
	return err
}

func headers(ctx context.Context, s mailbox.Session) error {
	return s.Headers(ctx, []mailbox.Entry{entry1}, func(mailbox.Entry, []byte) error { return nil })
}

func bodies(ctx context.Context, s mailbox.Session) error {
	_, err := fetchAll(ctx, s, entry1)
	return err
}

func wait(ctx context.Context, s mailbox.Session) error { return s.Wait(ctx, 300*time.Millisecond) }

func archive(ctx context.Context, s mailbox.Session) error {
	_, err := s.Dispose(ctx, contract.Archive, "Archive", []mailbox.Target{target1()})
	return err
}

func sent(ctx context.Context, s mailbox.Session) error {
	_, err := s.Sent(ctx, mailbox.SentCursor{}, func(mailbox.SentMail) error { return nil })
	return err
}

func TestAMailThatWasCutOffIsNoMail(t *testing.T) {
	for name, answer := range map[string]mailboxtest.Answer{
		"in the literal":     {Say: "* 1 FETCH (UID 1 BODY[] {20}\r\nSubject: he", Cut: true},
		"in a large literal": {Say: "* 1 FETCH (UID 1 BODY[] {64000}\r\n", Flood: 30000, Cut: true},
		"before the literal": {Say: "* 1 FETCH (UID 1 BODY[] {2", Cut: true},
		"BYE":                {Say: "* BYE shutting down\r\n", Cut: true},
	} {
		t.Run(name, func(t *testing.T) {
			answer.Verb = "BODY.PEEK[]"
			_, s := scriptedInbox(t, "", answer)
			session := open(t, s, mailbox.Read)
			whole := false
			err := session.Fetch(t.Context(), []mailbox.Entry{{UID: 1, Size: 64000}},
				func(_ mailbox.Entry, _ int64, body io.Reader) error {
					_, err := io.ReadAll(body)
					whole = err == nil
					return err
				})
			wantFault(t, err, fault.ProtocolClosed)
			if whole {
				t.Error("the body looked whole")
			}
		})
	}
}

func TestALineOf300MegabytesCostsLittle(t *testing.T) {
	for name, c := range map[string]struct {
		verb string
		call func(context.Context, mailbox.Session) error
	}{
		"in NOOP": {"NOOP", list}, "in SEARCH": {"UID SEARCH", list}, "in FETCH": {"BODY.PEEK[]", bodies},
		"in headers": {"HEADER]", headers}, "in LIST": {"LIST ", sent},
	} {
		t.Run(name, func(t *testing.T) {
			_, s := scriptedInbox(t, "", mailboxtest.Answer{Verb: c.verb, Say: "* OK ", Flood: 300 << 20})
			s.Timeout = 20 * time.Second
			session := open(t, s, mailbox.Read)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			wantFault(t, c.call(t.Context(), session), fault.ProtocolTooMuch)
			runtime.ReadMemStats(&after)
			if spent := after.TotalAlloc - before.TotalAlloc; spent > 64<<20 {
				t.Errorf("%d MB allocated", spent>>20)
			}
		})
	}
	_, s := startScript(t, mailboxtest.Script{Greeting: "+OK\r\n", Answers: append([]mailboxtest.Answer{
		{Verb: "UIDL", Say: "+OK ", Flood: 300 << 20}}, popAnswers...)})
	wantFault(t, opening(t, s), fault.ProtocolTooMuch)
}

func TestAListingOfAllNumbersCostsLittle(t *testing.T) {
	_, s := scriptedInbox(t, "ESEARCH",
		mailboxtest.Answer{Verb: "UID SEARCH", Say: "* ESEARCH (TAG \"{tag}\") UID ALL 1:4294967295\r\n{tag} OK\r\n"})
	wantFault(t, list(t.Context(), open(t, s, mailbox.Read)), fault.ProtocolBroken)
}

func TestOddAnswersDoNotEndASession(t *testing.T) {
	_, s := scriptedInbox(t, "",
		mailboxtest.Answer{Verb: "NOOP", Say: "* XYZZY magic\r\n* VANISHED 1:3\r\n* OK [HIGHESTMODSEQ x]\r\n" +
			"* 1 FETCH (FLAGS (\\Seen [foo] a]b))\r\n* FLAGS (a]b)\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "INTERNALDATE",
			Say: "* 1 FETCH (UID 1 RFC822.SIZE 20 INTERNALDATE \"yesterday\")\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: `LIST "" "*"`, Say: "* LIST () \".\" \"INBOX.R&D\"\r\n* LIST () \".\" {3}\r\nR&D\r\n" +
			"* LIST () \".\" \"caf\xe9\"\r\n* LIST (\\Sent) \".\" \"INBOX.L&AOQ-hetetyt\"\r\n{tag} OK\r\n"})
	session := open(t, s, mailbox.Read)
	entries, err := session.List(t.Context())
	if err != nil || len(entries) != 1 {
		t.Fatalf("list: %v, %v", entries, err)
	}
	infos, err := session.Describe(t.Context(), entries)
	if err != nil || len(infos) != 1 || infos[0].Size != 20 || !infos[0].InternalDate.IsZero() {
		t.Fatalf("describe: %v, %v", infos, err)
	}
	cursor, err := session.Sent(t.Context(), mailbox.SentCursor{}, func(mailbox.SentMail) error { return nil })
	if err != nil || cursor.Mailbox != "INBOX.Lähetetyt" {
		t.Fatalf("sent: %v, %v: %v", cursor, err, errors.Unwrap(err))
	}
}

func TestAnArchiveIsFoundBesideAMailboxNamedRandD(t *testing.T) {
	server, s := scriptedInbox(t, "MOVE UIDPLUS",
		mailboxtest.Answer{Verb: `LIST "" "*"`,
			Say: "* LIST () \"/\" R&D\r\n* LIST (\\Archive) \"/\" Arkisto\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "LIST ", Say: "* LIST () \"/\" R&D\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "UID SEARCH", Say: "* SEARCH\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "UID MOVE", Say: "* 1 EXPUNGE\r\n{tag} OK\r\n"})
	results, err := open(t, s, mailbox.Write).Dispose(t.Context(), contract.Archive, "Archive",
		[]mailbox.Target{target1()})
	if err != nil || outcomes(results) != contract.OutcomeArchived || results[0].Mailbox != "Arkisto" {
		t.Fatalf("%v, %v", results, err)
	}
	if !slices.ContainsFunc(server.Received(), func(l string) bool { return strings.Contains(l, "UID MOVE 1") }) {
		t.Errorf("received %q", server.Received())
	}
}

func TestAnEmptyBodyIsAnErrorOfThisMailOnly(t *testing.T) {
	for _, literal := range []string{"{0}\r\n", "NIL", `""`} {
		_, s := scriptedInbox(t, "", mailboxtest.Answer{Verb: "BODY.PEEK[]", Say: "* 1 FETCH (UID 1 BODY[] " + literal +
			")\r\n* 2 FETCH (UID 2 BODY[] {3}\r\nabc)\r\n{tag} OK\r\n"})
		session := open(t, s, mailbox.Read)
		got := map[uint32]string{}
		err := session.Fetch(t.Context(), []mailbox.Entry{{UID: 1, Size: 3}, {UID: 2, Size: 3}},
			func(e mailbox.Entry, _ int64, body io.Reader) error {
				b, err := io.ReadAll(body)
				got[e.UID] = string(b) + string(fault.CodeOf(err))
				return nil
			})
		if err != nil || got[1] != string(fault.ProtocolEmpty) || got[2] != "abc" {
			t.Errorf("%s: %v, %v", literal, got, err)
		}
	}
}

func TestABodyLargerThanAnnouncedEndsTheSession(t *testing.T) {
	_, s := scriptedInbox(t, "", mailboxtest.Answer{Verb: "BODY.PEEK[]", Say: "* 1 FETCH (UID 1 BODY[] {900000000}\r\n",
		Flood: 1 << 20})
	wantFault(t, bodies(t.Context(), open(t, s, mailbox.Read)), fault.ProtocolTooMuch)
}

func TestAMailOverTheLimitIsNotFetched(t *testing.T) {
	imap := startIMAP(t, mailboxtest.IMAPOptions{})
	pop := startPOP3(t, mailboxtest.POP3Options{})
	large := append(raw(1), bytes.Repeat([]byte("x"), 4<<20)...)
	for _, m := range [][]byte{raw(0), large, raw(2)} {
		imap.Deliver("user", "INBOX", m)
		pop.Deliver("user", m)
	}
	for _, s := range []mailbox.Settings{imap.Settings("user"), pop.Settings("user")} {
		s.MaxBody = 1 << 20
		session := open(t, s, mailbox.Read)
		entries, err := session.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var codes []string
		err = session.Fetch(t.Context(), entries, func(_ mailbox.Entry, _ int64, body io.Reader) error {
			_, err := io.ReadAll(body)
			codes = append(codes, string(fault.CodeOf(err)))
			return nil
		})
		if err != nil || !slices.Equal(codes, []string{"", string(fault.MailTooLarge), ""}) {
			t.Errorf("%s: %q, %v", s.Protocol, codes, err)
		}
		if err := session.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if sent := imap.BytesSent() + pop.BytesSent(); sent > 1<<20 {
		t.Errorf("%d bytes were sent", sent)
	}
}

func TestABodyStreams(t *testing.T) {
	imap := startIMAP(t, mailboxtest.IMAPOptions{Security: mailbox.Plain})
	pop := startPOP3(t, mailboxtest.POP3Options{Security: mailbox.Plain})
	large := append(raw(1), bytes.Repeat([]byte("0123456789abcdef\r\n"), 2<<20)...)
	imap.Deliver("user", "INBOX", large)
	pop.Deliver("user", large)
	for _, s := range []mailbox.Settings{imap.Settings("user"), pop.Settings("user")} {
		session := open(t, s, mailbox.Read)
		entries, err := session.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var most, base runtime.MemStats
		err = session.Fetch(t.Context(), entries, func(_ mailbox.Entry, _ int64, body io.Reader) error {
			runtime.GC()
			runtime.ReadMemStats(&base)
			n, err := io.Copy(io.Discard, body)
			runtime.ReadMemStats(&most)
			if n != int64(len(large)) {
				t.Errorf("%s: %d bytes", s.Protocol, n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		// The POP3 server stuffs dots in a copy or two of its own.
		if spent := most.TotalAlloc - base.TotalAlloc; spent > 4*uint64(len(large)) {
			t.Errorf("%s: %d MB allocated", s.Protocol, spent>>20)
		}
	}
}

func TestAFailingConsumerLeavesTheSessionUsable(t *testing.T) {
	imap := startIMAP(t, mailboxtest.IMAPOptions{})
	pop := startPOP3(t, mailboxtest.POP3Options{})
	for n := range 3 {
		imap.Deliver("user", "INBOX", raw(n))
		pop.Deliver("user", raw(n))
	}
	stop := errors.New("the store is full")
	for _, s := range []mailbox.Settings{imap.Settings("user"), pop.Settings("user")} {
		session := open(t, s, mailbox.Read)
		entries, err := session.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = session.Fetch(t.Context(), entries, func(mailbox.Entry, int64, io.Reader) error { return stop })
		if !errors.Is(err, stop) {
			t.Fatalf("%s: %v", s.Protocol, err)
		}
		err = session.Headers(t.Context(), entries, func(mailbox.Entry, []byte) error { return stop })
		if !errors.Is(err, stop) {
			t.Fatalf("%s: %v", s.Protocol, err)
		}
		if _, bodies := read(t, session); len(bodies) != 3 {
			t.Errorf("%s: %d bodies", s.Protocol, len(bodies))
		}
	}
}

func TestARefusedMoveLosesNothing(t *testing.T) {
	poison := raw(13)
	for _, without := range [][]string{nil, {"MOVE"}, {"UIDPLUS"}, {"MOVE", "UIDPLUS"}} {
		t.Run(fmt.Sprint(without), func(t *testing.T) {
			server := startIMAP(t, mailboxtest.IMAPOptions{Without: without,
				Refuse: func(verb, _ string, mails [][]byte) error {
					if (verb == "MOVE" || verb == "COPY") && slices.ContainsFunc(mails, func(m []byte) bool {
						return bytes.Equal(m, poison)
					}) {
						return mailboxtest.No("", "virus found")
					}
					return nil
				}})
			foreign := server.Deliver("user", "INBOX", raw(99), `\Deleted`)
			for n := range 20 {
				server.Deliver("user", "INBOX", raw(n))
			}
			session := open(t, server.Settings("user"), mailbox.Read)
			targets, _ := read(t, session)
			results := dispose(t, server.Settings("user"), contract.Archive, targets[1:])
			for _, r := range results {
				isPoison := r.Target.MessageID == "<mail13@example.org>"
				if (r.Err != nil) != isPoison {
					t.Errorf("%s: %q, %v", r.Target.MessageID, r.Outcome, r.Err)
				}
				if isPoison {
					wantFault(t, r.Err, fault.ArchiveRefused)
				}
			}
			if n := len(server.Mails("user", "Archive")); n != 19 {
				t.Errorf("%d mails in the archive", n)
			}
			uids := map[uint32]bool{}
			poisoned := false
			for _, m := range server.Mails("user", "INBOX") {
				uids[m.UID] = true
				poisoned = poisoned || bytes.Equal(m.Raw, poison) && !slices.Contains(m.Flags, `\Deleted`)
			}
			if !uids[foreign] {
				t.Error("a mail that somebody else had flagged was expunged")
			}
			if !poisoned {
				t.Error("the refused mail is gone or flagged")
			}
		})
	}
}

func TestWhenEveryMoveIsRefusedTheServerIsSpared(t *testing.T) {
	var mu sync.Mutex
	tries := 0
	server := startIMAP(t, mailboxtest.IMAPOptions{Refuse: func(verb, _ string, _ [][]byte) error {
		if verb == "MOVE" {
			mu.Lock()
			tries++
			mu.Unlock()
			return mailboxtest.No("OVERQUOTA", "full")
		}
		return nil
	}})
	for n := range 100 {
		server.Deliver("user", "INBOX", raw(n))
	}
	targets, _ := read(t, open(t, server.Settings("user"), mailbox.Read))
	results := dispose(t, server.Settings("user"), contract.Archive, targets)
	wantFault(t, results[0].Err, fault.MailboxOverQuota)
	if len(results) != 100 || len(server.Mails("user", "INBOX")) != 100 || tries > 50 {
		t.Errorf("%d results, %d tries", len(results), tries)
	}
}

func TestAnArchiveThatCannotBeMadeLeavesTheMailWhereItIs(t *testing.T) {
	server := startIMAP(t, mailboxtest.IMAPOptions{Refuse: func(verb, _ string, _ [][]byte) error {
		if verb == "CREATE" {
			return mailboxtest.No("NOPERM", "permission denied")
		}
		return nil
	}})
	server.Deliver("user", "INBOX", raw(1))
	targets, _ := read(t, open(t, server.Settings("user"), mailbox.Read))
	results := dispose(t, server.Settings("user"), contract.Archive, targets)
	wantFault(t, results[0].Err, fault.ArchiveCreate)
	if words := fault.As(results[0].Err).Params["words"]; words != "permission denied" {
		t.Errorf("words %q", words)
	}
	if mails := server.Mails("user", "INBOX"); len(mails) != 1 || len(mails[0].Flags) != 0 {
		t.Errorf("Inbox %v", mails)
	}
}

func TestAReadOnlyInboxIsSaidToBeOne(t *testing.T) {
	server := startIMAP(t, mailboxtest.IMAPOptions{ReadOnly: true})
	server.Deliver("user", "INBOX", raw(1))
	targets, _ := read(t, open(t, server.Settings("user"), mailbox.Read))
	session := open(t, server.Settings("user"), mailbox.Write)
	if !session.Status().ReadOnly {
		t.Error("the status does not say so")
	}
	results, err := session.Dispose(t.Context(), contract.Archive, "Archive", targets)
	if err != nil {
		t.Fatal(err)
	}
	wantFault(t, results[0].Err, fault.MailboxReadOnly)
}

func TestAnotherUIDVALIDITYMakesOrdersVoid(t *testing.T) {
	server := startIMAP(t, mailboxtest.IMAPOptions{})
	server.Deliver("user", "INBOX", raw(1))
	before := open(t, server.Settings("user"), mailbox.Read)
	targets, _ := read(t, before)
	server.Renumber("user", "INBOX")
	if got := outcomes(dispose(t, server.Settings("user"), contract.Delete, targets)); got != "superseded" {
		t.Errorf("outcomes %q", got)
	}
	if len(server.Mails("user", "INBOX")) != 1 {
		t.Error("the mail is gone")
	}
	old := before.Status().UIDValidity
	if _, err := before.Sent(t.Context(), mailbox.SentCursor{}, func(mailbox.SentMail) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if before.Status().UIDValidity == old {
		t.Error("the Inbox was opened again, but the status is old")
	}
}

func TestAUIDUsedAgainIsNoticed(t *testing.T) {
	server := startIMAP(t, mailboxtest.IMAPOptions{})
	uid := server.Deliver("user", "INBOX", raw(1))
	targets, _ := read(t, open(t, server.Settings("user"), mailbox.Read))
	server.Replace("user", "INBOX", uid, raw(2)) // of the same size
	if got := outcomes(dispose(t, server.Settings("user"), contract.Archive, targets)); got != "mismatch" {
		t.Errorf("outcomes %q", got)
	}
}

func TestACopyLeftByACrashIsNotMadeTwice(t *testing.T) {
	for _, without := range [][]string{{"MOVE"}, nil} {
		t.Run(fmt.Sprint(without), func(t *testing.T) {
			server := startIMAP(t, mailboxtest.IMAPOptions{Without: without})
			server.Deliver("user", "INBOX", raw(1), `\Deleted`)
			server.Deliver("user", "Archive", raw(1))
			server.Deliver("user", "INBOX", raw(2), `\Deleted`) // flagged by somebody, never copied
			twin := append(raw(3)[:0:0], raw(3)...)
			server.Deliver("user", "INBOX", raw(3))
			twin[len(twin)-3] = '!'
			server.Deliver("user", "Archive", twin) // the same Message-ID and size, other bytes
			targets, _ := read(t, open(t, server.Settings("user"), mailbox.Read))
			if got := outcomes(dispose(t, server.Settings("user"), contract.Archive, targets)); got !=
				"archived archived archived" {
				t.Errorf("outcomes %q", got)
			}
			if n := len(server.Mails("user", "Archive")); n != 4 {
				t.Errorf("%d mails in the archive", n)
			}
			if n := len(server.Mails("user", "INBOX")); n != 0 {
				t.Errorf("%d mails in the Inbox", n)
			}
		})
	}
}

func TestMissingUIDVALIDITYIsTolerated(t *testing.T) {
	_, s := scriptedInbox(t, "MOVE",
		mailboxtest.Answer{Verb: "SELECT", Say: "* 1 EXISTS\r\n* OK [UIDVALIDITY 0] none\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "UID SEARCH", Say: "* SEARCH\r\n{tag} OK\r\n"})
	target := target1()
	target.Place.UIDValidity = 0
	results, err := open(t, s, mailbox.Write).Dispose(t.Context(), contract.Archive, "Archive", []mailbox.Target{target})
	if err != nil || outcomes(results) != contract.OutcomeArchived {
		t.Errorf("%v, %v", results, err)
	}
}

func TestAnAnswerOfOKIsNoProofThatAMailWasMoved(t *testing.T) {
	_, s := scriptedInbox(t, "MOVE UIDPLUS", mailboxtest.Answer{Verb: "UID MOVE", Say: "{tag} OK\r\n"})
	results, err := open(t, s, mailbox.Write).Dispose(t.Context(), contract.Archive, "Archive",
		[]mailbox.Target{target1()})
	if err != nil {
		t.Fatal(err)
	}
	wantFault(t, results[0].Err, fault.ArchiveRefused)
}

func TestGmailMailIsDeletedByMovingItToTheBin(t *testing.T) {
	server, s := scriptedInbox(t, "MOVE UIDPLUS X-GM-EXT-1",
		mailboxtest.Answer{Verb: "LIST ", Say: "* LIST (\\HasNoChildren \\Trash) \"/\" \"[Gmail]/Trash\"\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "UID SEARCH", Say: "* SEARCH\r\n{tag} OK\r\n"})
	results, err := open(t, s, mailbox.Write).Dispose(t.Context(), contract.Delete, "", []mailbox.Target{target1()})
	if err != nil || outcomes(results) != contract.OutcomeDeleted {
		t.Fatalf("%v, %v", results, err)
	}
	for _, line := range server.Received() {
		if strings.Contains(line, "EXPUNGE") || strings.Contains(line, "STORE") {
			t.Errorf("sent %q", line)
		}
	}
}

func TestNewMailEndsTheWait(t *testing.T) {
	for _, security := range []mailbox.Security{mailbox.ImplicitTLS, mailbox.StartTLS} {
		server := startIMAP(t, mailboxtest.IMAPOptions{Security: security})
		session := open(t, server.Settings("user"), mailbox.Read)
		if _, err := session.List(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(100*time.Millisecond, func() { server.Deliver("user", "INBOX", raw(1)) })
		began := time.Now()
		if err := session.Wait(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
		entries, err := session.List(t.Context())
		if err != nil || len(entries) != 1 {
			t.Errorf("%v, %v", entries, err)
		}
	}
}

func TestMailThatArrivedBeforeTheWaitEndsItToo(t *testing.T) {
	_, s := scriptedInbox(t, "IDLE", mailboxtest.Answer{Verb: "INTERNALDATE", Say: "* 2 EXISTS\r\n{tag} OK\r\n"})
	session := open(t, s, mailbox.Read)
	if err := list(t.Context(), session); err != nil {
		t.Fatal(err)
	}
	if err := describe(t.Context(), session); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := session.Wait(t.Context(), time.Minute); err != nil || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestAnUnusedSessionOutlivesTheTimeout(t *testing.T) {
	server := startIMAP(t, mailboxtest.IMAPOptions{})
	server.Deliver("user", "INBOX", raw(1))
	s := server.Settings("user")
	s.Timeout = time.Second
	session := open(t, s, mailbox.Read)
	entries, err := session.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = session.Fetch(t.Context(), entries, func(_ mailbox.Entry, _ int64, body io.Reader) error {
		<-time.After(1500 * time.Millisecond) // a slow consumer
		_, err := io.Copy(io.Discard, body)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(1500 * time.Millisecond)
	if err := list(t.Context(), session); err != nil {
		t.Error(err)
	}
}

func TestTheSentMailboxIsReadOnceAndTheInboxIsOpenAfterwards(t *testing.T) {
	for name, options := range map[string]mailboxtest.IMAPOptions{
		"marked":         {Mailboxes: map[string]string{"Gesendet": `\Sent`, "Sent": ""}},
		"by name":        {Mailboxes: map[string]string{"Lähetetyt": "", "Muut": ""}},
		"below a prefix": {Prefix: "INBOX.", Mailboxes: map[string]string{"INBOX.Sent": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			server := startIMAP(t, options)
			var box string
			for _, box = range []string{"Gesendet", "Lähetetyt", "INBOX.Sent"} {
				if _, ok := options.Mailboxes[box]; ok {
					break
				}
			}
			for n := range 120 {
				server.Deliver("user", box, raw(n))
			}
			server.Deliver("user", "INBOX", raw(500))
			session := open(t, server.Settings("user"), mailbox.Read)
			read := func(from mailbox.SentCursor) (mailbox.SentCursor, int) {
				n := 0
				cursor, err := session.Sent(t.Context(), from, func(m mailbox.SentMail) error {
					if !bytes.Contains(m.Header, []byte("<mail")) || bytes.Contains(m.Header, []byte("From")) {
						t.Errorf("header %q", m.Header)
					}
					n++
					return nil
				})
				if err != nil {
					t.Fatalf("%v: %v", err, errors.Unwrap(err))
				}
				return cursor, n
			}
			cursor, n := read(mailbox.SentCursor{})
			if n != 120 || cursor.Mailbox != box {
				t.Fatalf("%d mails of %s", n, cursor.Mailbox)
			}
			server.Deliver("user", box, raw(121))
			if cursor, n = read(cursor); n != 1 {
				t.Errorf("%d new mails", n)
			}
			if _, n = read(cursor); n != 0 {
				t.Errorf("%d mails, none was new", n)
			}
			server.Renumber("user", box)
			if _, n = read(cursor); n != 121 {
				t.Errorf("%d mails after a change of UIDVALIDITY", n)
			}
			if entries, err := session.List(t.Context()); err != nil || len(entries) != 1 {
				t.Errorf("Inbox: %v, %v", entries, err)
			}
		})
	}
	server := startIMAP(t, mailboxtest.IMAPOptions{Mailboxes: map[string]string{"Other": ""}})
	pop := startPOP3(t, mailboxtest.POP3Options{})
	for _, s := range []mailbox.Settings{server.Settings("user"), pop.Settings("user")} {
		wantFault(t, sent(t.Context(), open(t, s, mailbox.Read)), fault.MailboxNoSent)
	}
}

func TestAFlagUpdateInPlaceOfAnAnswerDoesNotMakeAMailGone(t *testing.T) {
	_, s := scriptedInbox(t, "MOVE UIDPLUS", mailboxtest.Answer{Verb: "BODY.PEEK[HEADER]",
		Say: "* 1 FETCH (UID 1 FLAGS (\\Seen))\r\n* 1 FETCH (UID 1 FLAGS (\\Seen) RFC822.SIZE 20 BODY[HEADER] {16}\r\n" +
			"Subject: hello\r\n)\r\n{tag} OK\r\n"})
	results, err := open(t, s, mailbox.Write).Dispose(t.Context(), contract.Delete, "", []mailbox.Target{target1()})
	if err != nil {
		t.Fatal(err)
	}
	wantFault(t, results[0].Err, fault.ProtocolBroken)
}

func TestAResponseForAnotherMailIsNotTakenForTheTargets(t *testing.T) {
	server, s := scriptedInbox(t, "MOVE UIDPLUS", mailboxtest.Answer{Verb: "BODY.PEEK[HEADER]",
		Say: "* 1 FETCH (UID 9 FLAGS () RFC822.SIZE 20 BODY[HEADER] {16}\r\nSubject: hello\r\n)\r\n{tag} OK\r\n"},
		mailboxtest.Answer{Verb: "UID SEARCH", Say: "* SEARCH\r\n{tag} OK\r\n"})
	results, err := open(t, s, mailbox.Write).Dispose(t.Context(), contract.Delete, "", []mailbox.Target{target1()})
	if err != nil || outcomes(results) != contract.OutcomeGone {
		t.Errorf("%v, %v", results, err)
	}
	for _, line := range server.Received() {
		if strings.Contains(line, "STORE") || strings.Contains(line, "EXPUNGE") {
			t.Errorf("sent %q", line)
		}
	}
}
