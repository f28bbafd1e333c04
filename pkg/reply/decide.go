package reply

import (
	"regexp"
	"slices"
	"strings"

	"posthorn/pkg/contract"
)

// Verdicts of [Decide], as `reply.verdict` of an event carries them.
const (
	Reply       = "reply"
	NotReply    = "not-reply"
	MachineMail = "machine"
	Unsure      = "unsure"
)

// What counts as proof of a reply.
const (
	// EvidenceSent takes only ids that were sent from the account.
	EvidenceSent = "sent"
	// EvidenceHeader takes any In-Reply-To or References.
	EvidenceHeader = "header"
)

// Reason codes of [Decide], beside those of [Machine].
const (
	ReasonSelfEcho      = "SELF_ECHO"      // our own mail came back
	ReasonOwnFrom       = "OWN_FROM"       // from an own address
	ReasonTokenRcpt     = "TOKEN_RCPT"     // a signed token in a recipient
	ReasonTokenMsgID    = "TOKEN_MSGID"    // a signed token in an id
	ReasonIRTSent       = "IRT_SENT"       // In-Reply-To was sent from the account
	ReasonRefSent       = "REF_SENT"       // one of the References was sent from the account
	ReasonTaskKey       = "TASK_KEY"       // a task key in the subject, from an address of the task
	ReasonIRTHeader     = "IRT_HEADER"     // has an In-Reply-To, which is enough
	ReasonRefHeader     = "REF_HEADER"     // has References, which is enough
	ReasonIRTUnknown    = "IRT_UNKNOWN"    // In-Reply-To names a mail that was not (yet) seen among the sent ones
	ReasonRefUnknown    = "REF_UNKNOWN"    // so do the References
	ReasonSentNotReady  = "SENT_NOT_READY" // the sent mail was not read yet
	ReasonSubjectPrefix = "SUBJECT_PREFIX" // nothing but a reply prefix
	ReasonForwardPrefix = "FW_PREFIX"      // forwarded
	ReasonNoEvidence    = "NO_EVIDENCE"    // nothing at all
	ReasonPartClass     = "PART_CLASS"     // the parts of the mail show that a program wrote it
)

// Limits on what is looked at.
const (
	maxReferences = 32
	maxInReplyTo  = 32
	maxRecipients = 64
	maxTaskKeys   = 8
)

// Input is what [Decide] looks at.
type Input struct {
	Header Header
	// OwnAddresses are the addresses the account sends from.
	OwnAddresses []string
	// Sent tells whether a mail with this Message-ID (with angle brackets, as written) was sent from the account. Nil
	// means never. It should compare by contract.MessageIDKey.
	Sent func(id string) bool
	// SentReady tells whether the sent mail was read at least once; until then an unknown id proves nothing.
	SentReady bool
	// Evidence is EvidenceSent or EvidenceHeader; anything else counts as EvidenceSent.
	Evidence string
	// Token checks a signed token: it gets recipient addresses and ids (with angle brackets). Nil means none is issued.
	Token func(candidate string) bool
	// TaskKey tells whether a key found in the subject, such as "PH#1042", is of a task that the sender's address
	// belongs to. A key alone is guessable. Nil means there are no tasks.
	TaskKey func(key, from string) bool
	// PartClass is the machine class that the parts of the mail show, "" when none or not yet known.
	PartClass string
}

// Verdict is what [Decide] found.
type Verdict struct {
	// Verdict is Reply, NotReply, MachineMail or Unsure.
	Verdict string
	// Reasons are the codes that led to it, strongest first, each once.
	Reasons []string
	// MatchedID is the id of the mail that is answered, with angle brackets. A machine mail can have one too.
	MatchedID string
	// Machine is the class of a mail that a program wrote, also when it does not veto.
	Machine string
	// CertainFromHeaders tells that the rest of the mail cannot turn the verdict into a reply or out of one: a mail that
	// is certainly none can be left without its body being read. Asking again later does not help either.
	CertainFromHeaders bool
}

// Contract is the verdict in the form that events carry.
func (v Verdict) Contract() contract.Reply {
	return contract.Reply{Verdict: v.Verdict, Reasons: v.Reasons, MatchedID: v.MatchedID}
}

var taskKey = regexp.MustCompile(`\b[A-Za-z][A-Za-z0-9]{0,9}#[0-9]{1,12}\b`)

// Decide applies the replies-only rule. It is pure but for the hooks, and the same for the same answers of the hooks.
func Decide(in Input) Verdict {
	class, weak := Machine(in.Header)
	var v Verdict
	if stronger := Stronger(class, in.PartClass); stronger != class {
		class = stronger
		v.Reasons = append(v.Reasons, ReasonPartClass)
	}
	v.Machine = class
	decide := func(verdict string, certain bool, reasons ...string) Verdict {
		v.Verdict, v.CertainFromHeaders = verdict, certain
		v.Reasons = unique(append(append(reasons, v.Reasons...), weak...))
		return v
	}

	from := ""
	own := false
	for _, a := range Addresses(in.Header.All("From")) {
		if from == "" {
			from = a.Address
		}
		own = own || slices.ContainsFunc(in.OwnAddresses, func(o string) bool { return sameAddress(o, a.Address) })
	}
	if own {
		for _, id := range IDs(in.Header.All("Message-ID")) {
			if in.sent(id) {
				return decide(NotReply, true, ReasonSelfEcho)
			}
		}
		v.Reasons = append(v.Reasons, ReasonOwnFrom)
	}

	answered := IDs(in.Header.All("In-Reply-To"))
	answered = answered[:min(len(answered), maxInReplyTo)]
	references := IDs(in.Header.All("References"))
	references = references[max(0, len(references)-maxReferences):]
	slices.Reverse(references) // newest first
	matched, how := in.match(answered, references)

	if Vetoes(class) {
		v.MatchedID = matched // tells which mail a bounce or an absence note is about
		if how != "" {
			return decide(MachineMail, true, append([]string{}, append(firstOf(weak), how)...)...)
		}
		return decide(MachineMail, true, firstOf(weak)...)
	}

	if id, reason := in.token(answered, references); reason != "" {
		v.MatchedID = matched
		if v.MatchedID == "" {
			v.MatchedID = id
		}
		return decide(Reply, false, reason)
	}
	if how != "" {
		v.MatchedID = matched
		return decide(Reply, false, how)
	}
	subject := in.Header.Text("Subject")
	if in.TaskKey != nil && from != "" {
		for _, key := range taskKey.FindAllString(subject, maxTaskKeys) {
			if in.TaskKey(key, from) {
				return decide(Reply, false, ReasonTaskKey)
			}
		}
	}
	return in.heuristics(&v, decide, answered, references, subject)
}

// heuristics decides on what proves nothing under evidence `sent`.
func (in Input) heuristics(v *Verdict, decide func(string, bool, ...string) Verdict,
	answered, references []string, subject string,
) Verdict {
	prefix := subjectPrefix(subject)
	var support []string
	switch prefix {
	case replyPrefix:
		support = []string{ReasonSubjectPrefix}
	case forwardPrefix:
		support = []string{ReasonForwardPrefix}
	}
	if len(answered)+len(references) > 0 {
		if in.Evidence == EvidenceHeader {
			if len(answered) > 0 {
				v.MatchedID = answered[0]
				return decide(Reply, false, ReasonIRTHeader)
			}
			v.MatchedID = references[0]
			return decide(Reply, false, ReasonRefHeader)
		}
		reasons := []string{ReasonRefUnknown}
		if len(answered) > 0 {
			reasons = []string{ReasonIRTUnknown}
		}
		if !in.SentReady {
			reasons = append(reasons, ReasonSentNotReady)
		}
		return decide(Unsure, false, append(reasons, support...)...)
	}
	if prefix == replyPrefix {
		return decide(Unsure, false, support...)
	}
	return decide(NotReply, true, append([]string{ReasonNoEvidence}, support...)...)
}

// match looks the ids up among the sent mail: In-Reply-To first, then the References, newest first.
func (in Input) match(answered, references []string) (id, reason string) {
	for _, id := range answered {
		if in.sent(id) {
			return id, ReasonIRTSent
		}
	}
	for _, id := range references {
		if in.sent(id) {
			return id, ReasonRefSent
		}
	}
	return "", ""
}

// sent looks one id up, also in lower case: some gateways change the case of the local part.
func (in Input) sent(id string) bool {
	if in.Sent == nil || id == "" {
		return false
	}
	if in.Sent(id) {
		return true
	}
	lower := strings.ToLower(id)
	return lower != id && in.Sent(lower)
}

// token looks for a signed token in the recipients and then in the ids.
func (in Input) token(answered, references []string) (id, reason string) {
	if in.Token == nil {
		return "", ""
	}
	var values []string
	for _, name := range []string{"To", "Cc", "Delivered-To", "X-Original-To", "Envelope-To", "X-Envelope-To"} {
		values = append(values, in.Header.All(name)...)
	}
	recipients := Addresses(values)
	for _, a := range recipients[:min(len(recipients), maxRecipients)] {
		if in.Token(a.Address) {
			return "", ReasonTokenRcpt
		}
	}
	for _, id := range append(slices.Clone(answered), references...) {
		if in.Token(id) {
			return id, ReasonTokenMsgID
		}
	}
	return "", ""
}

// firstOf keeps the machine reason that decided in front.
func firstOf(reasons []string) []string {
	return slices.Clone(reasons[:min(len(reasons), 1)])
}

func unique(list []string) []string {
	out := list[:0:0]
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
