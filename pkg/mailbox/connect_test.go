package mailbox_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/mailbox/mailboxtest"
)

// short keeps tests of silence fast.
const short = 700 * time.Millisecond

func startIMAP(t *testing.T, options mailboxtest.IMAPOptions) *mailboxtest.IMAP {
	t.Helper()
	s, err := mailboxtest.StartIMAP(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func startPOP3(t *testing.T, options mailboxtest.POP3Options) *mailboxtest.POP3 {
	t.Helper()
	s, err := mailboxtest.StartPOP3(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func startScript(t *testing.T, script mailboxtest.Script) (*mailboxtest.Scripted, mailbox.Settings) {
	t.Helper()
	s, err := mailboxtest.StartScript(script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	protocol := mailbox.IMAP
	if strings.HasPrefix(script.Greeting, "+") || strings.HasPrefix(script.Greeting, "-") {
		protocol = mailbox.POP3
	}
	return s, mailbox.Settings{Protocol: protocol, Host: "127.0.0.1", Port: s.Port(), Security: mailbox.Plain,
		Username: "user", Password: "hunter2", Timeout: short}
}

// wantFault checks the code, and that the text for people has no gaps.
func wantFault(t *testing.T, err error, code fault.Code) {
	t.Helper()
	if got := fault.CodeOf(err); got != code {
		t.Fatalf("got %s, want %s: %v: %v", got, code, err, errors.Unwrap(err))
	}
	text := fault.As(err).Text("en")
	for _, s := range []string{text.Headline, text.Now, text.You} {
		if strings.Contains(s, "{") {
			t.Errorf("%s: unfilled text %q", code, s)
		}
	}
}

func opening(t *testing.T, s mailbox.Settings) error {
	t.Helper()
	session, err := mailbox.Open(t.Context(), s, mailbox.Read)
	if err == nil {
		_ = session.Close()
	}
	return err
}

func TestEveryWayNotToGetInHasItsCode(t *testing.T) {
	imap := startIMAP(t, mailboxtest.IMAPOptions{})
	startTLS := startIMAP(t, mailboxtest.IMAPOptions{Security: mailbox.StartTLS})
	pop := startPOP3(t, mailboxtest.POP3Options{})
	plainPOP := startPOP3(t, mailboxtest.POP3Options{Security: mailbox.Plain})
	plainIMAP := startIMAP(t, mailboxtest.IMAPOptions{Security: mailbox.Plain})
	ca, err := mailboxtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	certified := func(until time.Time, names ...string) *mailboxtest.IMAP {
		cert, err := ca.Issue(until, names...)
		if err != nil {
			t.Fatal(err)
		}
		return startIMAP(t, mailboxtest.IMAPOptions{CA: ca, Certificate: &cert})
	}
	expired := certified(time.Now().Add(-time.Hour), "127.0.0.1")
	otherName := certified(time.Now().Add(time.Hour), "mail.example.org")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	closed, _ := strconv.Atoi(port)
	_ = l.Close()

	with := func(s mailbox.Settings, change func(*mailbox.Settings)) mailbox.Settings {
		s.Timeout = short
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		settings mailbox.Settings
		code     fault.Code
	}{
		"a name that does not exist": {with(imap.Settings("user"), func(s *mailbox.Settings) {
			s.Host = "mial.example.invalid"
		}), fault.DNSNoSuchHost},
		"a port nobody answers": {with(imap.Settings("user"), func(s *mailbox.Settings) { s.Port = closed }),
			fault.TCPRefused},
		"a wrong password": {with(imap.Settings("user"), func(s *mailbox.Settings) { s.Password = "wrong" }),
			fault.AuthRejected},
		"a wrong POP3 password": {with(pop.Settings("user"), func(s *mailbox.Settings) { s.Password = "wrong" }),
			fault.AuthRejected},
		"a line break in the password": {with(pop.Settings("user"), func(s *mailbox.Settings) { s.Password = "a\r\nDELE 1" }),
			fault.AuthRejected},
		"an unknown issuer": {with(imap.Settings("user"), func(s *mailbox.Settings) { s.RootCAs = ca.Pool() }),
			fault.TLSUnknownCA},
		"an expired certificate":        {with(expired.Settings("user"), func(*mailbox.Settings) {}), fault.TLSExpired},
		"a certificate of another name": {with(otherName.Settings("user"), func(*mailbox.Settings) {}), fault.TLSName},
		"TLS to a plain port": {with(startTLS.Settings("user"), func(s *mailbox.Settings) {
			s.Security = mailbox.ImplicitTLS
		}), fault.TLSMode},
		"TLS to a plain POP3 port": {with(plainPOP.Settings("user"), func(s *mailbox.Settings) {
			s.Security = mailbox.ImplicitTLS
		}), fault.TLSMode},
		"STARTTLS to a TLS port": {with(imap.Settings("user"), func(s *mailbox.Settings) { s.Security = mailbox.StartTLS }),
			fault.TLSMode},
		"STLS to a TLS port": {with(pop.Settings("user"), func(s *mailbox.Settings) { s.Security = mailbox.StartTLS }),
			fault.TLSMode},
		"no STARTTLS": {with(plainIMAP.Settings("user"), func(s *mailbox.Settings) { s.Security = mailbox.StartTLS }),
			fault.TLSNoSTARTTLS},
		"no STLS": {with(plainPOP.Settings("user"), func(s *mailbox.Settings) { s.Security = mailbox.StartTLS }),
			fault.TLSNoSTARTTLS},
		"plain sign-in where TLS is demanded": {with(startTLS.Settings("user"), func(s *mailbox.Settings) {
			s.Security = mailbox.Plain
		}), fault.AuthMechanism},
		"IMAP to a POP3 server": {with(pop.Settings("user"), func(s *mailbox.Settings) { s.Protocol = mailbox.IMAP }),
			fault.ProtocolWrong},
		"POP3 to an IMAP server": {with(imap.Settings("user"), func(s *mailbox.Settings) { s.Protocol = mailbox.POP3 }),
			fault.ProtocolWrong},
		"a private address where only public ones are allowed": {with(imap.Settings("user"), func(s *mailbox.Settings) {
			s.Network = mailbox.PublicOnly
		}), fault.PolicyAddress},
		"the metadata address": {with(imap.Settings("user"), func(s *mailbox.Settings) { s.Host = "169.254.169.254" }),
			fault.PolicyAddress},
		"a mapped link-local address": {with(imap.Settings("user"), func(s *mailbox.Settings) {
			s.Host = "::ffff:169.254.1.1"
		}), fault.PolicyAddress},
		"no address at all": {with(imap.Settings("user"), func(s *mailbox.Settings) { s.Host = "0.0.0.0" }),
			fault.PolicyAddress},
	} {
		t.Run(name, func(t *testing.T) { wantFault(t, opening(t, c.settings), c.code) })
	}
}

// capabilities answered by scripts.
func capability(caps string) mailboxtest.Answer {
	return mailboxtest.Answer{Verb: " CAPABILITY", Say: "* CAPABILITY IMAP4rev1 " + caps + "\r\n{tag} OK\r\n"}
}

func TestAServersWordsBecomeCodes(t *testing.T) {
	for words, want := range map[string]fault.Code{
		"NO [AUTHENTICATIONFAILED] Authentication failed.": fault.AuthRejected,
		"NO LOGIN failed.": fault.AuthRejected,
		"NO [UNAVAILABLE] Temporary authentication failure.":                 fault.LimitUnavailable,
		"NO [LIMIT] Maximum number of connections":                           fault.LimitConnections,
		"NO Too many simultaneous connections. (Failure)":                    fault.LimitConnections,
		"NO [INUSE] in use":                                                  fault.LimitInUse,
		"NO [EXPIRED] That password isn't valid any more":                    fault.AuthExpired,
		"NO [PRIVACYREQUIRED] Not in clear":                                  fault.AuthMechanism,
		"NO LOGIN failed. BasicAuthBlocked":                                  fault.AuthPasswordNotAllowed,
		"NO [ALERT] Application-specific password required: http":            fault.AuthPasswordNotAllowed,
		"NO IMAP access is disabled for your domain.":                        fault.ProtocolDisabled,
		"BAD Request is throttled. Suggested Backoff Time: 299 milliseconds": fault.LimitBackOff,
	} {
		t.Run(words, func(t *testing.T) {
			_, s := startScript(t, mailboxtest.Script{Greeting: "* OK ready\r\n", Answers: []mailboxtest.Answer{
				capability(""), {Verb: "LOGIN", Say: "{tag} " + words + "\r\n"}}})
			err := opening(t, s)
			wantFault(t, err, want)
			if want == fault.LimitBackOff && fault.As(err).RetryAfter != 299*time.Millisecond {
				t.Errorf("retry after %v", fault.As(err).RetryAfter)
			}
		})
	}
	for words, want := range map[string]fault.Code{
		"-ERR [AUTH] Authentication failed.":               fault.AuthRejected,
		"-ERR invalid user name or password":               fault.AuthRejected,
		"-ERR [IN-USE] Do you have another session?":       fault.LimitInUse,
		"-ERR maildrop already locked":                     fault.LimitInUse,
		"-ERR [LOGIN-DELAY] Minimum time between logins":   fault.LimitBackOff,
		"-ERR [SYS/TEMP] Try later":                        fault.LimitUnavailable,
		"-ERR [SYS/PERM] POP access disabled for account.": fault.ProtocolDisabled,
	} {
		t.Run(words, func(t *testing.T) {
			_, s := startScript(t, mailboxtest.Script{Greeting: "+OK ready\r\n", Otherwise: "-ERR what\r\n",
				Answers: []mailboxtest.Answer{{Verb: "USER", Say: "+OK\r\n"}, {Verb: "PASS", Say: words + "\r\n"}}})
			wantFault(t, opening(t, s), want)
		})
	}
}

func TestAGreetingThatIsNoneIsAnError(t *testing.T) {
	for greeting, want := range map[string]fault.Code{
		"* BYE [UNAVAILABLE] overloaded\r\n":                fault.LimitUnavailable,
		"* BYE Too many connections from your IP\r\n":       fault.LimitConnections,
		"* PREAUTH welcome\r\n":                             fault.TLSPreAuth,
		"220 mail.example.org ESMTP\r\n":                    fault.ProtocolBroken,
		"\x15\x03\x01\x00\x02\x02\x46\r\n":                  fault.TLSMode,
		"* OK " + strings.Repeat("x", 20000) + "\r\n":       fault.ProtocolTooMuch,
		"-ERR [SYS/TEMP] come back\r\n":                     fault.LimitUnavailable,
		"* OK [CAPABILITY IMAP4rev1] half a line, then end": fault.ProtocolTimeout,
	} {
		t.Run(fault.Quote(greeting[:min(20, len(greeting))]), func(t *testing.T) {
			_, s := startScript(t, mailboxtest.Script{Greeting: greeting})
			wantFault(t, opening(t, s), want)
		})
	}
}

func TestNothingIsSentInClearWhenSTARTTLSIsDemanded(t *testing.T) {
	ca, err := mailboxtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(time.Now().Add(time.Hour), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	for name, c := range map[string]struct {
		greeting string
		answers  []mailboxtest.Answer
		want     fault.Code
	}{
		"not offered": {"* OK\r\n", []mailboxtest.Answer{capability("AUTH=PLAIN")}, fault.TLSNoSTARTTLS},
		"refused": {"* OK\r\n", []mailboxtest.Answer{capability("STARTTLS"), {Verb: "STARTTLS", Say: "{tag} NO\r\n"}},
			fault.TLSNoSTARTTLS},
		"early answer": {"* OK\r\nP1 OK done\r\nP2 OK done\r\n", []mailboxtest.Answer{capability("STARTTLS")},
			fault.ProtocolBroken},
		"PREAUTH": {"* PREAUTH\r\n", nil, fault.TLSPreAuth},
		"something after": {"* OK\r\n", []mailboxtest.Answer{capability("STARTTLS"),
			{Verb: "STARTTLS", Say: "{tag} OK\r\n* CAPABILITY X\r\n", StartTLS: config}}, fault.TLSMode},
		"hung": {"* OK\r\n", []mailboxtest.Answer{capability("STARTTLS"),
			{Verb: "STARTTLS", Say: "{tag} OK\r\n", Hang: true}}, fault.ProtocolTimeout},
		"POP3 refused": {"+OK\r\n", []mailboxtest.Answer{{Verb: "CAPA", Say: "+OK\r\nSTLS\r\nUSER\r\n.\r\n"},
			{Verb: "STLS", Say: "-ERR no\r\n"}}, fault.TLSNoSTARTTLS},
		"POP3 something after": {"+OK\r\n", []mailboxtest.Answer{{Verb: "CAPA", Say: "+OK\r\nSTLS\r\nUSER\r\n.\r\n"},
			{Verb: "STLS", Say: "+OK\r\n+OK injected\r\n", StartTLS: config}}, fault.TLSMode},
	} {
		t.Run(name, func(t *testing.T) {
			server, s := startScript(t, mailboxtest.Script{Greeting: c.greeting, Answers: c.answers})
			s.Security, s.RootCAs = mailbox.StartTLS, ca.Pool()
			err := opening(t, s)
			wantFault(t, err, c.want)
			for _, line := range server.Received() {
				if strings.Contains(line, "hunter2") || strings.Contains(line, "user") {
					t.Errorf("sent %q", line)
				}
			}
		})
	}
}

func TestAHungServerIsNoticedInEveryStateOfSigningIn(t *testing.T) {
	hang := func(verb string) mailboxtest.Answer { return mailboxtest.Answer{Verb: verb, Hang: true} }
	imap := []mailboxtest.Answer{capability("IDLE"), {Verb: "LOGIN", Say: "{tag} OK\r\n"}}
	pop := []mailboxtest.Answer{{Verb: "CAPA", Say: "+OK\r\nUSER\r\nUIDL\r\n.\r\n"}, {Verb: "USER", Say: "+OK\r\n"},
		{Verb: "PASS", Say: "+OK\r\n"}, {Verb: "STAT", Say: "+OK 1 10\r\n"}, {Verb: "LIST", Say: "+OK\r\n1 10\r\n.\r\n"}}
	type hung struct {
		greeting string
		answers  []mailboxtest.Answer
	}
	cases := map[string]hung{"IMAP greeting": {"", nil}}
	for _, verb := range []string{"CAPABILITY", "LOGIN", "EXAMINE"} {
		cases["IMAP "+verb] = hung{"* OK\r\n", append([]mailboxtest.Answer{hang(verb)}, imap...)}
	}
	for _, verb := range []string{"CAPA", "USER", "PASS", "STAT", "LIST", "UIDL"} {
		cases["POP3 "+verb] = hung{"+OK\r\n", append([]mailboxtest.Answer{hang(verb)}, pop...)}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, s := startScript(t, mailboxtest.Script{Greeting: c.greeting, Answers: c.answers})
			began := time.Now()
			wantFault(t, opening(t, s), fault.ProtocolTimeout)
			if took := time.Since(began); took > 15*short {
				t.Errorf("it took %v", took)
			}
			s.Timeout = time.Minute
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, cancel)
			began = time.Now()
			if _, err := mailbox.Open(ctx, s, mailbox.Read); !errors.Is(err, context.Canceled) {
				t.Errorf("after cancelling: %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("cancelling took %v", took)
			}
		})
	}
}

func TestThePasswordIsNotInTheTraceNorAreBodies(t *testing.T) {
	secret := "sécret \"pass\\word"
	users := map[string]string{"user": secret}
	imap := startIMAP(t, mailboxtest.IMAPOptions{Users: users})
	imap.Deliver("user", "INBOX", raw(1))
	pop := startPOP3(t, mailboxtest.POP3Options{Users: users})
	pop.Deliver("user", raw(1))
	for _, s := range []mailbox.Settings{imap.Settings("user"), pop.Settings("user")} {
		var mu sync.Mutex
		var trace []string
		s.Trace = func(direction, line string) {
			mu.Lock()
			defer mu.Unlock()
			trace = append(trace, direction+" "+line)
		}
		session := open(t, s, mailbox.Read)
		read(t, session)
		if err := session.Close(); err != nil {
			t.Fatal(err)
		}
		all := strings.Join(trace, "\n")
		for _, hidden := range []string{"cret", "pass\\", "Hello", "anna@", "AHVzZXI"} {
			if strings.Contains(all, hidden) {
				t.Errorf("%s: the trace shows %q:\n%s", s.Protocol, hidden, all)
			}
		}
		if !strings.Contains(all, " bytes}") || len(trace) < 10 {
			t.Errorf("%s: the trace lacks something:\n%s", s.Protocol, all)
		}
	}
}

func TestAConnectionTestReportsEveryStepAndChangesNothing(t *testing.T) {
	imap := startIMAP(t, mailboxtest.IMAPOptions{})
	for n := range 3 {
		imap.Deliver("user", "INBOX", raw(n))
	}
	s := imap.Settings("user")
	s.Timeout = 5 * time.Second
	var steps []mailbox.Step
	options := mailbox.TestOptions{Disposition: contract.Archive, Archive: "Archive"}
	if err := mailbox.Test(t.Context(), s, options, func(s mailbox.Step) { steps = append(steps, s) }); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, step := range steps {
		got = append(got, step.Name+":"+string(step.Status))
	}
	want := "dns:ok policy:ok tcp:ok tls:ok greeting:ok capabilities:ok sign-in:ok inbox:ok archive:ok " +
		"rights:skipped backlog:ok"
	if strings.Join(got, " ") != want {
		t.Errorf("steps %s", strings.Join(got, " "))
	}
	if facts := steps[len(steps)-1].Facts; facts["messages"] != "3" || facts["then"] != "archive" {
		t.Errorf("backlog %v", facts)
	}
	if steps[8].Facts["create"] != "Archive" || len(imap.MailboxNames("user")) != 4 {
		t.Errorf("archive %v, mailboxes %v", steps[8].Facts, imap.MailboxNames("user"))
	}

	s.Password = "wrong"
	steps = nil
	err := mailbox.Test(t.Context(), s, options, func(s mailbox.Step) { steps = append(steps, s) })
	wantFault(t, err, fault.AuthRejected)
	if steps[6].Status != mailbox.StepFail || steps[7].Status != mailbox.StepSkipped || len(steps) != 11 {
		t.Errorf("steps %v", steps)
	}
	data, err := json.Marshal(steps[6])
	if err != nil {
		t.Fatal(err)
	}
	var again mailbox.Step
	if err := json.Unmarshal(data, &again); err != nil {
		t.Fatal(err)
	}
	if again.Fault.Code != fault.AuthRejected || !reflect.DeepEqual(again.Fault.Params, steps[6].Fault.Params) {
		t.Errorf("read back: %s", data)
	}
}

func TestAConnectionTestNamesThePortThatAnswers(t *testing.T) {
	// 127.x.y.z has every port to itself; only 993 is taken there.
	host := fmt.Sprintf("127.77.%d.%d", time.Now().UnixNano()%250, time.Now().UnixNano()/1000%250+1)
	server, err := mailboxtest.StartIMAP(mailboxtest.IMAPOptions{Addr: host + ":993"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	s := server.Settings("user")
	s.Port, s.Security, s.Timeout = 143, mailbox.StartTLS, short
	var tcp mailbox.Step
	err = mailbox.Test(t.Context(), s, mailbox.TestOptions{}, func(s mailbox.Step) {
		if s.Name == "tcp" {
			tcp = s
		}
	})
	wantFault(t, err, fault.TCPRefused)
	if tcp.Facts["hint_port"] != "993" {
		t.Errorf("facts %v", tcp.Facts)
	}
	if server.Logins() != 0 {
		t.Error("it signed in at the other port")
	}
}

func TestAPasswordThatCannotBeQuotedIsSentAsALiteral(t *testing.T) {
	server, s := scriptedInbox(t, "", mailboxtest.Answer{Verb: "LOGIN {", Say: "+ go on\r\n"},
		mailboxtest.Answer{Verb: "USER {", Say: "+ go on\r\n"}, mailboxtest.Answer{Verb: "SALASANA", Say: "P2 OK\r\n"})
	s.Password = "salasanaä"
	if err := opening(t, s); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(server.Received()[1:4], "|"); got != "P2 LOGIN {4}|user {10}|salasanaä" {
		t.Errorf("received %q", got)
	}
}
