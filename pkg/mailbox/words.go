package mailbox

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"posthorn/pkg/fault"
)

// refusal is a server's NO, BAD, BYE or -ERR: its response code without brackets (RFC 5530, RFC 2449, RFC 3206) and its
// words.
type refusal struct {
	code  string
	words string
}

func (r refusal) Error() string {
	if r.code != "" {
		return "[" + r.code + "] " + r.words
	}
	return r.words
}

// refused splits the text after NO, BAD, BYE or -ERR.
func refused(text string) refusal {
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "[") {
		if code, words, ok := strings.Cut(text[1:], "]"); ok {
			code, _, _ = strings.Cut(code, " ")
			return refusal{strings.ToUpper(code), strings.TrimSpace(words)}
		}
	}
	return refusal{"", text}
}

var (
	backOff = regexp.MustCompile(`(?i)suggested backoff time:? *(\d{1,9}) *(?:ms|milliseconds)`)
	// tooMany is how servers without the code [LIMIT] say it.
	tooMany = regexp.MustCompile(`(?i)too many\b.*\b(connection|session|login)|maximum number of connections|` +
		`connection limit|concurrent (connection|session)s? (limit|exceeded)`)
	inUse       = regexp.MustCompile(`(?i)\b(already )?(locked|in use)\b|unable to lock|maildrop lock|mailbox is busy`)
	noPasswords = regexp.MustCompile(`(?i)basic ?auth\w* ?(is )?(blocked|disabled)|basic authentication|` +
		`app(lication)?[- ]specific password|app password|web login required|less secure`)
	switchedOff = regexp.MustCompile(`(?i)(imap|pop3?)\b.{0,20}(is |access )?(disabled|not enabled|switched off)|` +
		`not enabled for (imap|pop)|(imap|pop3?) access is not`)
	// notConnected is Exchange's way of saying that the mailbox is not at hand.
	notConnected = regexp.MustCompile(`(?i)authenticated but not connected`)
	temporarily  = regexp.MustCompile(`(?i)temporar(y|ily)|try again later|internal (server )?error|unavailable`)
)

// fault turns a refusal into an error with a code. signIn says that a refusal without any known reason is a rejected
// user name or password.
func (r refusal) fault(s *Settings, step string, signIn bool) *fault.Error {
	p := params(s, "step", step, "words", r.words, "wanted", s.Protocol.name(), "mailbox", "INBOX")
	code := fault.ProtocolRefused
	if m := backOff.FindStringSubmatch(r.words); m != nil {
		if ms, err := strconv.Atoi(m[1]); err == nil {
			return fault.New(fault.LimitBackOff, r, p).WithRetryAfter(time.Duration(ms) * time.Millisecond)
		}
	}
	switch r.code {
	case "UNAVAILABLE", "SYS/TEMP", "SERVERBUG":
		code = fault.LimitUnavailable
	case "LIMIT":
		code = fault.LimitConnections
	case "INUSE", "IN-USE":
		code = fault.LimitInUse
	case "LOGIN-DELAY":
		code = fault.LimitBackOff
	case "EXPIRED":
		code = fault.AuthExpired
	case "PRIVACYREQUIRED":
		p["offered"] = "only encrypted connections"
		code = fault.AuthMechanism
	case "OVERQUOTA":
		code = fault.MailboxOverQuota
	}
	if code == fault.ProtocolRefused || (signIn && code == fault.LimitUnavailable) {
		switch {
		case noPasswords.MatchString(r.words):
			return fault.New(fault.AuthPasswordNotAllowed, r, p)
		case switchedOff.MatchString(r.words):
			return fault.New(fault.ProtocolDisabled, r, p)
		case tooMany.MatchString(r.words):
			return fault.New(fault.LimitConnections, r, p)
		case code == fault.LimitUnavailable:
			return fault.New(code, r, p)
		}
	}
	if code != fault.ProtocolRefused {
		return fault.New(code, r, p)
	}
	switch r.code {
	case "AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "AUTH":
		return fault.New(fault.AuthRejected, r, p)
	case "NONEXISTENT":
		return fault.New(fault.MailboxMissing, r, p)
	case "NOPERM", "CONTACTADMIN", "SYS/PERM":
		return fault.New(fault.MailboxDenied, r, p)
	}
	switch {
	case s.Protocol == POP3 && inUse.MatchString(r.words):
		return fault.New(fault.LimitInUse, r, p)
	case notConnected.MatchString(r.words), signIn && temporarily.MatchString(r.words):
		return fault.New(fault.LimitUnavailable, r, p)
	case signIn:
		return fault.New(fault.AuthRejected, r, p)
	}
	return fault.New(code, r, p)
}

// name of a protocol as people write it.
func (p Protocol) name() string { return strings.ToUpper(string(p)) }
