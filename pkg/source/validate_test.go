package source

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
)

// good is a source that keeps every rule of goodRules.
func good() Source {
	s := New()
	s.ID, s.Name, s.DefaultWorkflow = "sales", "Sales inbox", "sales"
	s.Address, s.Server, s.Port, s.Username = "sales@example.org", "mail.example.org", 993, "sales@example.org"
	return s
}

func goodRules() Rules {
	return Rules{
		Workflows: []Workflow{{ID: "sales", Name: "Sales", Published: true}, {ID: "old", Name: "Old"}, General()},
		Password:  "hunter2",
	}
}

func TestASourceWithTheDefaultsKeepsTheRules(t *testing.T) {
	for name, change := range map[string]func(*Source){
		"as it is":              func(*Source) {},
		"pop3":                  func(s *Source) { s.Type, s.Port = mailbox.POP3, 995 },
		"pop3 with STLS":        func(s *Source) { s.Type, s.Port = mailbox.POP3, 110 },
		"plain":                 func(s *Source) { s.Port, s.SSL = 143, false },
		"an IPv4 address":       func(s *Source) { s.Server = "127.0.0.1" },
		"an IPv6 address":       func(s *Source) { s.Server = "::1" },
		"a short name":          func(s *Source) { s.Server = "mail_server" },
		"a name outside ASCII":  func(s *Source) { s.Server = "sähkö.example" },
		"no archive needed":     func(s *Source) { s.AfterFetch, s.ArchiveMailbox = contract.Leave, "" },
		"pop3 without archive":  func(s *Source) { s.Type, s.Port, s.ArchiveMailbox = mailbox.POP3, 995, "" },
		"an archive with parts": func(s *Source) { s.ArchiveMailbox = "INBOX.Käsitellyt" },
		"from now":              func(s *Source) { s.ImportFrom = ImportNow },
		"from a date":           func(s *Source) { s.ImportFrom = "2026-11-23" },
		"from a time":           func(s *Source) { s.ImportFrom = "2026-11-23T08:00:00+02:00" },
		"an odd user name":      func(s *Source) { s.Username = `DOMAIN\"sales" user` },
	} {
		s := good()
		change(&s)
		if violations := Validate(s, goodRules()); violations != nil {
			t.Errorf("%s: %v", name, violations)
		}
	}
}

// broken breaks one rule each: what is said is part of what we promise.
var broken = []struct {
	change func(*Source, *Rules)
	want   Violation
}{
	{func(s *Source, _ *Rules) { s.ID = "" }, Violation{"id", RuleRequired,
		"Give the source an id: 1 to 64 characters of a-z, 0-9, _ and -."}},
	{func(s *Source, _ *Rules) { s.ID = "Sales.1" }, Violation{"id", RuleToken,
		`The id "Sales.1" may only hold a-z, 0-9, _ and -, at most 64 of them.`}},
	{func(s *Source, _ *Rules) { s.ID = "manual" }, Violation{"id", RuleToken,
		`The id "manual" is kept for requests that do not come by mail. Choose another one.`}},
	{func(_ *Source, r *Rules) { r.Others = []Source{{ID: "sales"}} }, Violation{"id", RuleUnique,
		`There is a source with the id "sales" already.`}},
	{func(s *Source, _ *Rules) { s.Name = "" }, Violation{"name", RuleRequired, "Give the name."}},
	{func(s *Source, _ *Rules) { s.Name = "a\nb" }, Violation{"name", RuleControl,
		"The name may not hold line breaks or control characters."}},
	{func(s *Source, _ *Rules) { s.Name = strings.Repeat("x", 201) }, Violation{"name", RuleLength,
		"The name may be at most 200 bytes long; it is 201."}},
	{func(_ *Source, r *Rules) { r.Others = []Source{{ID: "other", Name: "SALES inbox"}} }, Violation{"name", RuleUnique,
		`The source other has the name "SALES inbox" already.`}},
	{func(s *Source, _ *Rules) { s.Description = strings.Repeat("x", 2001) }, Violation{"description", RuleLength,
		"The description may be at most 2000 bytes long; it is 2001."}},
	{func(s *Source, _ *Rules) { s.DefaultWorkflow = "" }, Violation{"default_workflow", RuleRequired,
		"Give the default workflow. Choose one of: sales, general."}},
	{func(s *Source, _ *Rules) { s.DefaultWorkflow = "saels" }, Violation{"default_workflow", RuleUnknown,
		`There is no workflow "saels". Choose one of: sales, general.`}},
	{func(s *Source, _ *Rules) { s.DefaultWorkflow = "old" }, Violation{"default_workflow", RuleUnpublished,
		`The workflow "old" is not published. Choose one of: sales, general.`}},
	{func(_ *Source, r *Rules) { r.Workflows = nil }, Violation{"default_workflow", RuleUnknown,
		`There is no workflow "sales". No workflow is published: publish one first.`}},
	{func(s *Source, _ *Rules) { s.Type = "exchange" }, Violation{"type", RuleChoice,
		`The type is imap or pop3, not "exchange".`}},
	{func(s *Source, _ *Rules) { s.Address = "" }, Violation{"address", RuleRequired, "Give the email address."}},
	{func(s *Source, _ *Rules) { s.Address = "Sales <sales@example.org>" }, Violation{"address", RuleSyntax,
		`"Sales <sales@example.org>" is no email address: write it like sales@example.org.`}},
	{func(s *Source, _ *Rules) { s.Server = "" }, Violation{"server", RuleRequired, "Give the server."}},
	{func(s *Source, _ *Rules) { s.Server = "imaps://mail.example.org:993/" }, Violation{"server", RuleSyntax,
		`Write only the server's name, without "imaps://": mail.example.org.`}},
	{func(s *Source, _ *Rules) { s.Server = "mail example.org" }, Violation{"server", RuleSyntax,
		"The server's name may not hold blanks."}},
	{func(s *Source, _ *Rules) { s.Server = "mail.example.org:993" }, Violation{"server", RuleSyntax,
		"Write the server's name without the port, and give the port by itself."}},
	{func(s *Source, _ *Rules) { s.Server = "sales@example.org" }, Violation{"server", RuleSyntax,
		`"sales@example.org" looks like an email address. Write the name of its server, such as mail.example.org.`}},
	{func(s *Source, _ *Rules) { s.Server = "mail..example.org" }, Violation{"server", RuleSyntax,
		`"mail..example.org" is no server name: write it like mail.example.org.`}},
	{func(s *Source, _ *Rules) { s.Port = 0 }, Violation{"port", RuleRequired, "Give the port, usually 993 with SSL."}},
	{func(s *Source, _ *Rules) { s.Port = 25 }, Violation{"port", RulePort,
		"The port 25 is not allowed. Use one of 110, 143, 993, 995 (usually 993 with SSL), " +
			"or start Posthorn with --allowed-ports."}},
	{func(_ *Source, r *Rules) { r.AllowedPorts = []int{143} }, Violation{"port", RulePort,
		"The port 993 is not allowed. Use one of 143 (usually 993 with SSL), or start Posthorn with --allowed-ports."}},
	{func(s *Source, _ *Rules) { s.Port = 995 }, Violation{"port", RuleProtocolPort,
		"The port 995 is for POP3, but the type is imap. Use the port 993, or the type pop3."}},
	{func(s *Source, _ *Rules) { s.Type, s.Port = mailbox.POP3, 143 }, Violation{"port", RuleProtocolPort,
		"The port 143 is for IMAP, but the type is pop3. Use the port 995, or the type imap."}},
	{func(s *Source, _ *Rules) { s.SSL = false }, Violation{"ssl", RuleSSL, "The port 993 speaks SSL only: turn SSL on."}},
	{func(s *Source, _ *Rules) { s.Username = "" }, Violation{"username", RuleRequired, "Give the user name."}},
	{func(s *Source, _ *Rules) { s.Username = "sales\r\nLOGOUT" }, Violation{"username", RuleControl,
		"The user name may not hold line breaks or control characters."}},
	{func(_ *Source, r *Rules) {
		r.Others = []Source{{ID: "other", Server: "MAIL.example.org", Username: "Sales@example.org"}}
	}, Violation{"username", RuleUnique,
		"The source other reads the account Sales@example.org on MAIL.example.org already. " +
			"One account can have one source only."}},
	{func(_ *Source, r *Rules) {
		r.Others = []Source{{ID: "other", Server: "mail.example.org", Username: "sales@example.org",
			ManagedBy: ByFile, Paused: true, PausedBy: ByFile}}
	}, Violation{"username", RuleUnique,
		"The source other reads the account sales@example.org on mail.example.org already. " +
			"One account can have one source only. " +
			"It is paused by the sources file: if the file no longer names it, apply with --prune to remove it."}},
	{func(s *Source, _ *Rules) { s.Auth.Type = "oauth2" }, Violation{"auth", RuleOAuth,
		"Signing in with OAuth2 is not available yet. Use a password or an app password for now."}},
	{func(s *Source, _ *Rules) { s.Auth.Type = "kerberos" }, Violation{"auth", RuleChoice,
		`The way of signing in is password, not "kerberos".`}},
	{func(_ *Source, r *Rules) { r.Password = "" }, Violation{"password", RuleRequired, "Give the password."}},
	{func(_ *Source, r *Rules) { r.Password = "hunter2\r\nA1 LOGOUT" }, Violation{"password", RuleControl,
		"The password may not hold line breaks or NUL characters."}},
	{func(_ *Source, r *Rules) { r.Password = "a\x00b" }, Violation{"password", RuleControl,
		"The password may not hold line breaks or NUL characters."}},
	{func(s *Source, _ *Rules) { s.AfterFetch = "burn" }, Violation{"after_fetch", RuleChoice,
		`After taking in, a mail is archived, deleted or left: write archive, delete or leave, not "burn".`}},
	{func(s *Source, _ *Rules) { s.ArchiveMailbox = "" }, Violation{"archive_mailbox", RuleRequired,
		"Give the name of the archive mailbox."}},
	{func(s *Source, _ *Rules) { s.ArchiveMailbox = "Inbox" }, Violation{"archive_mailbox", RuleInbox,
		"The Inbox cannot be its own archive. Name another mailbox, such as Archive."}},
	{func(s *Source, _ *Rules) { s.MaxSize = 10 }, Violation{"max_size", RuleRange,
		"The maximum mail size is 1KB to 1GB, not 10B."}},
	{func(s *Source, _ *Rules) { s.MaxSize = 2 * GB }, Violation{"max_size", RuleRange,
		"The maximum mail size is 1KB to 1GB, not 2GB."}},
	{func(s *Source, _ *Rules) { s.PollInterval = Duration(time.Second) }, Violation{"poll_interval", RuleRange,
		"The poll interval is 5s to 86400s, not 1s."}},
	{func(s *Source, _ *Rules) { s.CA = "hello" }, Violation{"ca_file", RuleCertificate,
		"The private CA holds no certificate: give it as PEM, starting with -----BEGIN CERTIFICATE-----."}},
	{func(s *Source, _ *Rules) { s.CA = "-----BEGIN PRIVATE KEY-----\nQUJD\n-----END PRIVATE KEY-----\n" },
		Violation{"ca_file", RuleCertificate, `The private CA holds a block "PRIVATE KEY"; it may hold certificates only.`}},
	{func(s *Source, _ *Rules) { s.CA = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n" },
		Violation{"ca_file", RuleCertificate, "The certificate number 1 of the private CA cannot be read."}},
	{func(s *Source, _ *Rules) { s.ReplyEvidence = "guess" }, Violation{"reply_evidence", RuleChoice,
		`The reply evidence is auto, sent or header, not "guess".`}},
	{func(s *Source, _ *Rules) { s.Type, s.Port, s.ReplyEvidence = mailbox.POP3, 995, EvidenceSent },
		Violation{"reply_evidence", RuleNotOnPOP3,
			"POP3 has no Sent mailbox to look for the answered mail in. Use auto or header, or IMAP."}},
	{func(s *Source, _ *Rules) { s.ImportFrom = "yesterday" }, Violation{"import_from", RuleSyntax,
		`Take in mail from all, now or a date such as 2026-11-23, not "yesterday".`}},
}

func TestEveryBrokenRuleIsNamedWithWhatToDo(t *testing.T) {
	for _, test := range broken {
		s, rules := good(), goodRules()
		test.change(&s, &rules)
		got := Validate(s, rules)
		if len(got) != 1 || got[0] != test.want {
			t.Errorf("got  %+v\nwant %+v", got, test.want)
		}
	}
}

func TestAllBrokenRulesAreNamedAtOnce(t *testing.T) {
	got := Validate(Source{}, Rules{})
	var fields []string
	for _, violation := range got {
		fields = append(fields, violation.Field)
	}
	want := "id name default_workflow type address server port username auth after_fetch max_size poll_interval " +
		"reply_evidence import_from"
	if strings.Join(fields, " ") != want {
		t.Errorf("got  %v\nwant %s", fields, want)
	}
}

func TestAPasswordIsAskedAgainWhenItWouldGoSomewhereElse(t *testing.T) {
	before := good()
	before.Auth.Sealed.KeyID = "k1"
	for name, test := range map[string]struct {
		change func(*Source)
		again  bool
	}{
		"nothing":   {func(*Source) {}, false},
		"name":      {func(s *Source) { s.Name = "New" }, false},
		"port":      {func(s *Source) { s.Port = 143 }, false},
		"server":    {func(s *Source) { s.Server = "evil.example" }, true},
		"user name": {func(s *Source) { s.Username = "root" }, true},
	} {
		after := before
		test.change(&after)
		rules := goodRules()
		rules.Before, rules.Others, rules.Password = &before, []Source{before}, ""
		got := Validate(after, rules)
		if again := len(got) == 1 && got[0].Rule == RuleTypeAgain; again != test.again || (!again && got != nil) {
			t.Errorf("%s: %v", name, got)
		}
		rules.Password = "typed again"
		if got := Validate(after, rules); got != nil {
			t.Errorf("%s, password typed: %v", name, got)
		}
	}
}

func TestAPrivateCAIsRead(t *testing.T) {
	pem, err := os.ReadFile("testdata/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	s := good()
	s.CA = string(pem) + "\n" + string(pem)
	if got := Validate(s, goodRules()); got != nil {
		t.Error(got)
	}
}

func TestAnInvalidSourceIsAFaultThatListsEverything(t *testing.T) {
	err := invalid("the source sales", Validate(Source{ID: "sales"}, goodRules()))
	if fault.CodeOf(err) != fault.PolicyNotValid || !fault.Permanent(err) {
		t.Errorf("code %s", fault.CodeOf(err))
	}
	list, ok := errors.AsType[*InvalidError](err)
	if !ok {
		t.Fatalf("%T", err)
	}
	for _, violation := range list.Violations {
		if !strings.Contains(err.Error(), violation.Field+": "+violation.Message) {
			t.Errorf("%s is missing in %s", violation.Field, err)
		}
	}
	if err := invalid("x", nil); err != nil {
		t.Error(err)
	}
}

func TestWorkflowsKeepTheirRules(t *testing.T) {
	others := []Workflow{General(), {ID: "sales", Name: "Sales", Published: true}}
	for name, test := range map[string]struct {
		workflow Workflow
		want     []Violation
	}{
		"good": {Workflow{ID: "new", Name: "New"}, nil},
		"nothing": {
			Workflow{},
			[]Violation{
				{"id", RuleRequired, "Give the workflow an id: 1 to 64 characters of a-z, 0-9, _ and -."},
				{"name", RuleRequired, "Give the name."},
			},
		},
		"bad id": {
			Workflow{ID: "Ä", Name: "Ä"},
			[]Violation{{"id", RuleToken, `The id "Ä" may only hold a-z, 0-9, _ and -, at most 64 of them.`}},
		},
		"same name": {Workflow{ID: "new", Name: "general"}, []Violation{{"name", RuleUnique,
			`The workflow general has the name "General" already.`}}},
		"unpublished in use": {Workflow{ID: "sales", Name: "Sales"}, []Violation{{"published", RuleInUse,
			"New requests of these sources go to this workflow: sales. Give them another default workflow first."}}},
	} {
		got := ValidateWorkflow(test.workflow, others, []Source{good()})
		if len(got) != len(test.want) {
			t.Errorf("%s: %v", name, got)
			continue
		}
		for i := range got {
			if got[i] != test.want[i] {
				t.Errorf("%s:\ngot  %+v\nwant %+v", name, got[i], test.want[i])
			}
		}
	}
}
