package source

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/secret"
)

// Violation is one setting that breaks a rule.
type Violation struct {
	// Field is the name of the setting as it stands in JSON and in the sources file.
	Field string `json:"field"`
	// Rule is one of the Rule constants: for programs.
	Rule string `json:"rule"`
	// Message is a sentence or two for the person who made the setting. It never holds a secret.
	Message string `json:"message"`
}

// The rules that a [Violation] names.
const (
	RuleRequired     = "required"
	RuleToken        = "token"         // an id of other characters than a-z, 0-9, _ and -
	RuleUnique       = "unique"        // another source has it already
	RuleUnknown      = "unknown"       // names a workflow that does not exist
	RuleUnpublished  = "unpublished"   // names a workflow that is not published
	RuleChoice       = "choice"        // none of the values there are
	RuleSyntax       = "syntax"        // not written as such a thing is written
	RuleLength       = "length"        // too long
	RuleControl      = "control"       // holds line breaks or other control characters
	RulePort         = "port"          // a port that is not allowed
	RuleProtocolPort = "protocol_port" // a port of the other protocol
	RuleSSL          = "ssl"           // SSL off where there is nothing else
	RuleTypeAgain    = "type_again"    // the password must be typed again
	RuleNotOnPOP3    = "not_on_pop3"
	RuleInbox        = "inbox" // the Inbox as its own archive
	RuleRange        = "range"
	RuleCertificate  = "certificate"
	RuleReadOnly     = "read_only" // cannot be changed
	RuleInUse        = "in_use"    // sources still use it
	RuleContradicts  = "contradiction"
	RuleOAuth        = string(fault.PolicyOAuth)
)

// Limits of a source.
const (
	LeastPollInterval = Duration(5 * time.Second)
	MostPollInterval  = Duration(24 * time.Hour)
	LeastMaxSize      = 1 * KB
	MostMaxSize       = 1 * GB
)

// DefaultPorts are the ports a source may use when nothing else is allowed.
func DefaultPorts() []int { return []int{110, 143, 993, 995} }

// Rules are what a source is judged by beside itself.
type Rules struct {
	// AllowedPorts is [DefaultPorts] when empty.
	AllowedPorts []int
	// Workflows that exist, published or not.
	Workflows []Workflow
	// Others are the sources that exist; the source itself may be among them.
	Others []Source
	// Before is the source as it is stored, nil for a new one.
	Before *Source
	// Password is the new password, empty when none is given.
	Password secret.Secret
}

// Validate returns every rule that the source breaks, in the order of the form; nil when it may be saved.
func Validate(s Source, rules Rules) []Violation {
	v := &violations{}
	v.identity(s, rules)
	v.account(s, rules)
	v.signIn(s, rules)
	v.handling(s)
	return v.list
}

type violations struct{ list []Violation }

func (v *violations) add(field, rule, format string, args ...any) {
	v.list = append(v.list, Violation{Field: field, Rule: rule, Message: fmt.Sprintf(format, args...)})
}

// text checks what holds for every line of text; it returns false when there is nothing more to check.
func (v *violations) text(field, label, value string, most int) bool {
	switch {
	case value == "":
		v.add(field, RuleRequired, "Give the %s.", label)
		return false
	case hasControl(value):
		v.add(field, RuleControl, "The %s may not hold line breaks or control characters.", label)
		return false
	case len(value) > most:
		v.add(field, RuleLength, "The %s may be at most %d bytes long; it is %d.", label, most, len(value))
		return false
	}
	return true
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd })
}

func (v *violations) id(s Source, rules Rules) {
	switch {
	case s.ID == "":
		v.add("id", RuleRequired, "Give the source an id: 1 to 64 characters of a-z, 0-9, _ and -.")
	case !contract.ValidToken(s.ID):
		v.add("id", RuleToken, "The id %q may only hold a-z, 0-9, _ and -, at most 64 of them.", s.ID)
	case s.ID == "manual" || s.ID == "api":
		v.add("id", RuleToken, "The id %q is kept for requests that do not come by mail. Choose another one.", s.ID)
	case rules.Before == nil && slices.ContainsFunc(rules.Others, func(o Source) bool { return o.ID == s.ID }):
		v.add("id", RuleUnique, "There is a source with the id %q already.", s.ID)
	}
}

func (v *violations) identity(s Source, rules Rules) {
	v.id(s, rules)
	if v.text("name", "name", s.Name, 200) {
		for _, other := range rules.Others {
			if other.ID != s.ID && strings.EqualFold(other.Name, s.Name) {
				v.add("name", RuleUnique, "The source %s has the name %q already.%s", other.ID, other.Name, stillThere(other))
			}
		}
	}
	if len(s.Description) > 2000 {
		v.add("description", RuleLength, "The description may be at most 2000 bytes long; it is %d.", len(s.Description))
	}
	v.workflow(s.DefaultWorkflow, rules.Workflows)
}

func (v *violations) workflow(id string, workflows []Workflow) {
	var published []string
	for _, workflow := range workflows {
		if workflow.Published {
			published = append(published, workflow.ID)
		}
	}
	choose := "Choose one of: " + strings.Join(published, ", ") + "."
	if len(published) == 0 {
		choose = "No workflow is published: publish one first."
	}
	i := slices.IndexFunc(workflows, func(w Workflow) bool { return w.ID == id })
	switch {
	case id == "":
		v.add("default_workflow", RuleRequired, "Give the default workflow. %s", choose)
	case i < 0:
		v.add("default_workflow", RuleUnknown, "There is no workflow %q. %s", id, choose)
	case !workflows[i].Published:
		v.add("default_workflow", RuleUnpublished, "The workflow %q is not published. %s", id, choose)
	}
}

func (v *violations) account(s Source, rules Rules) {
	if s.Type != mailbox.IMAP && s.Type != mailbox.POP3 {
		v.add("type", RuleChoice, "The type is imap or pop3, not %q.", s.Type)
	}
	if v.text("address", "email address", s.Address, 254) {
		if parsed, err := mail.ParseAddress(s.Address); err != nil || parsed.Address != s.Address {
			v.add("address", RuleSyntax, "%q is no email address: write it like sales@example.org.", s.Address)
		}
	}
	if v.text("server", "server", s.Server, 253) {
		v.server(s.Server)
	}
	v.port(s, rules)
}

func (v *violations) server(server string) {
	switch {
	case strings.Contains(server, "://"):
		scheme, _, _ := strings.Cut(server, "://")
		hint := "mail.example.org"
		if parsed, err := url.Parse(server); err == nil && parsed.Hostname() != "" {
			hint = parsed.Hostname()
		}
		v.add("server", RuleSyntax, "Write only the server's name, without %q: %s.", scheme+"://", hint)
	case strings.ContainsAny(server, " \u00a0"):
		v.add("server", RuleSyntax, "The server's name may not hold blanks.")
	case net.ParseIP(server) != nil:
	case strings.Contains(server, "@"):
		v.add("server", RuleSyntax, "%q looks like an email address. Write the name of its server, such as mail.%s.",
			server, server[strings.LastIndex(server, "@")+1:])
	case strings.Contains(server, ":"):
		v.add("server", RuleSyntax, "Write the server's name without the port, and give the port by itself.")
	case !validHost(server):
		v.add("server", RuleSyntax, "%q is no server name: write it like mail.example.org.", server)
	}
}

// validHost accepts dotted names; underscores too, as container networks use them.
func validHost(server string) bool {
	if !isASCII(server) {
		_, err := idna.Lookup.ToASCII(server)
		return err == nil
	}
	for label := range strings.SplitSeq(server, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return false
		}
		if strings.ContainsFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return false
		}
	}
	return true
}

func (v *violations) port(s Source, rules Rules) {
	allowed := rules.AllowedPorts
	if len(allowed) == 0 {
		allowed = DefaultPorts()
	}
	secure, other := 993, "pop3"
	if s.Type == mailbox.POP3 {
		secure, other = 995, "imap"
	}
	pop3Port, imapPort := s.Port == 110 || s.Port == 995, s.Port == 143 || s.Port == 993
	switch {
	case s.Port == 0:
		v.add("port", RuleRequired, "Give the port, usually %d with SSL.", secure)
	case !slices.Contains(allowed, s.Port):
		v.add("port", RulePort, "The port %d is not allowed. Use one of %s (usually %d with SSL), "+
			"or start Posthorn with --allowed-ports.", s.Port, joinPorts(allowed), secure)
	case s.Type == mailbox.IMAP && pop3Port, s.Type == mailbox.POP3 && imapPort:
		v.add("port", RuleProtocolPort, "The port %d is for %s, but the type is %s. Use the port %d, or the type %s.",
			s.Port, strings.ToUpper(other), s.Type, secure, other)
	}
	if !s.SSL && (s.Port == 993 || s.Port == 995) {
		v.add("ssl", RuleSSL, "The port %d speaks SSL only: turn SSL on.", s.Port)
	}
}

func joinPorts(ports []int) string {
	words := make([]string, len(ports))
	for i, port := range ports {
		words[i] = strconv.Itoa(port)
	}
	return strings.Join(words, ", ")
}

func (v *violations) signIn(s Source, rules Rules) {
	if v.text("username", "user name", s.Username, 255) {
		for _, other := range rules.Others {
			if other.ID != s.ID && strings.EqualFold(other.Server, s.Server) && strings.EqualFold(other.Username, s.Username) {
				v.add("username", RuleUnique,
					"The source %s reads the account %s on %s already. One account can have one source only.%s",
					other.ID, other.Username, other.Server, stillThere(other))
			}
		}
	}
	switch {
	case s.Auth.Type != AuthPassword && s.Auth.Type != authOAuth2:
		v.add("auth", RuleChoice, "The way of signing in is password, not %q.", s.Auth.Type)
		return
	case s.Auth.Type == authOAuth2:
		v.add("auth", RuleOAuth, "Signing in with OAuth2 is not available yet. Use a password or an app password for now.")
		return
	case rules.Password == "" && (rules.Before == nil || rules.Before.Auth.Sealed.IsZero()):
		v.add("password", RuleRequired, "Give the password.")
	case rules.Password == "" && asksPassword(*rules.Before, s):
		v.add("password", RuleTypeAgain, "Type the password again: the server or the user name has changed, "+
			"and a stored password is only sent where it was typed for.")
	}
	v.password(rules.Password)
}

// password checks what a password may hold at all: a line break in it would end the command it is sent in.
func (v *violations) password(password secret.Secret) {
	if strings.ContainsAny(password.Reveal(), "\r\n\x00") {
		v.add("password", RuleControl, "The password may not hold line breaks or NUL characters.")
	}
	if len(password) > 4096 {
		v.add("password", RuleLength, "The password may be at most 4096 bytes long.")
	}
}

func (v *violations) handling(s Source) {
	switch s.AfterFetch {
	case contract.Archive, contract.Delete, contract.Leave:
	default:
		v.add("after_fetch", RuleChoice, "After taking in, a mail is archived, deleted or left: "+
			"write archive, delete or leave, not %q.", s.AfterFetch)
	}
	if s.Type == mailbox.IMAP && s.AfterFetch == contract.Archive || s.ArchiveMailbox != "" {
		if v.text("archive_mailbox", "name of the archive mailbox", s.ArchiveMailbox, 255) &&
			strings.EqualFold(s.ArchiveMailbox, "INBOX") {
			v.add("archive_mailbox", RuleInbox, "The Inbox cannot be its own archive. Name another mailbox, such as Archive.")
		}
	}
	if s.MaxSize < LeastMaxSize || s.MaxSize > MostMaxSize {
		v.add("max_size", RuleRange, "The maximum mail size is %s to %s, not %s.", LeastMaxSize, MostMaxSize, s.MaxSize)
	}
	if s.PollInterval < LeastPollInterval || s.PollInterval > MostPollInterval {
		v.add("poll_interval", RuleRange, "The poll interval is %s to %s, not %s.",
			LeastPollInterval, MostPollInterval, s.PollInterval)
	}
	if s.CA != "" {
		if problem := checkCA(s.CA); problem != "" {
			v.add("ca_file", RuleCertificate, "%s", problem)
		}
	}
	switch {
	case s.ReplyEvidence != EvidenceAuto && s.ReplyEvidence != EvidenceSent && s.ReplyEvidence != EvidenceHeader:
		v.add("reply_evidence", RuleChoice, "The reply evidence is auto, sent or header, not %q.", s.ReplyEvidence)
	case s.ReplyEvidence == EvidenceSent && s.Type == mailbox.POP3:
		v.add("reply_evidence", RuleNotOnPOP3,
			"POP3 has no Sent mailbox to look for the answered mail in. Use auto or header, or IMAP.")
	}
	if _, err := parseImportFrom(s.ImportFrom, time.Time{}); err != nil {
		v.add("import_from", RuleSyntax, "Take in mail from all, now or a date such as 2026-11-23, not %q.", s.ImportFrom)
	}
}

// checkCA says what is wrong with private issuers in PEM, "" for nothing.
func checkCA(text string) string {
	rest, count := []byte(text), 0
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Sprintf("The private CA holds a block %q; it may hold certificates only.", fault.Quote(block.Type))
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Sprintf("The certificate number %d of the private CA cannot be read.", count+1)
		}
		count++
	}
	if count == 0 {
		return "The private CA holds no certificate: give it as PEM, starting with -----BEGIN CERTIFICATE-----."
	}
	return ""
}

// stillThere explains a clash with a source that its file no longer names.
func stillThere(other Source) string {
	if other.ManagedBy == ByFile && other.Paused && other.PausedBy == ByFile {
		return " It is paused by the sources file: if the file no longer names it, apply with --prune to remove it."
	}
	return ""
}

// InvalidError is what saving returns for settings that break rules. Its code is policy.not_valid.
type InvalidError struct {
	// What was to be saved, such as "the source sales".
	What       string
	Violations []Violation
}

// Error lists what is to be corrected.
func (e *InvalidError) Error() string {
	return string(fault.PolicyNotValid) + ": " + e.What + " cannot be saved as it is: " + e.problems()
}

func (e *InvalidError) problems() string {
	messages := make([]string, len(e.Violations))
	for i, violation := range e.Violations {
		messages[i] = violation.Field + ": " + violation.Message
	}
	return strings.Join(messages, " ")
}

// Unwrap makes it a [fault.Error].
func (e *InvalidError) Unwrap() error {
	return fault.New(fault.PolicyNotValid, nil, fault.Params{"what": e.What, "problems": e.problems()})
}

func invalid(what string, violations []Violation) error {
	if len(violations) == 0 {
		return nil
	}
	return &InvalidError{What: what, Violations: violations}
}
