package contract

import "time"

// Disposition is what is done to a mail in its mailbox once its event is stored.
type Disposition string

// The dispositions. A POP3 mailbox has no archive: there [Archive] means left on the server and remembered.
const (
	Archive Disposition = "archive"
	Delete  Disposition = "delete"
	Leave   Disposition = "leave"
)

// SourceRef names the source of a mail as it was when the mail was fetched.
type SourceRef struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address,omitempty"`
}

// Stamp is the source's configuration as it was when a mail was fetched. Later stages and replays use the stamp, never
// today's configuration.
type Stamp struct {
	Source SourceRef `json:"source"`
	// Revision is the revision of the source's record.
	Revision uint64 `json:"revision"`
	// Epoch is the source's identity on its server: new whenever type, server or username changes.
	Epoch       string `json:"epoch"`
	Workflow    string `json:"workflow"`
	RepliesOnly bool   `json:"replies_only,omitempty"`
	// Evidence is what counts as proof of a reply: `sent` or `header`.
	Evidence    string      `json:"evidence,omitempty"`
	Disposition Disposition `json:"disposition"`
}

// Place is where one mail lies: enough to find it again, and to notice that something else lies there now.
type Place struct {
	Epoch    string `json:"epoch"`
	Protocol string `json:"protocol"` // imap or pop3
	// UIDValidity and UID are set on IMAP (RFC 9051 section 2.3.1.1).
	UIDValidity uint32 `json:"uid_validity,omitempty"`
	UID         uint32 `json:"uid,omitempty"`
	// UIDL is set on POP3 (RFC 1939 section 7), empty when the server has none.
	UIDL string `json:"uidl,omitempty"`
	// Size in bytes as the server announced it.
	Size int64 `json:"size"`
	// Fingerprint is a hash of the identifying headers, compared before anything is done to the mail.
	Fingerprint string `json:"fingerprint,omitempty"`
}

// Address is a mailbox of RFC 5322 section 3.4; the name is decoded.
type Address struct {
	Name    string `json:"name,omitempty"`
	Address string `json:"address"`
}

// Attachment is one part of a mail that is not its text. The index is what a content request for the part names.
type Attachment struct {
	Index       int    `json:"index"`
	Filename    string `json:"filename,omitempty"`
	ContentType string `json:"content_type"`
	Size        int64  `json:"size"`
	SHA256      string `json:"sha256"`
	Inline      bool   `json:"inline,omitempty"`
	ContentID   string `json:"content_id,omitempty"`
}

// Conversation groups the mails that belong together.
type Conversation struct {
	ID  string `json:"id"`
	New bool   `json:"new"`
}

// Reply is the verdict of the replies-only rule on a mail, with the reasons that led to it.
type Reply struct {
	// Verdict is reply, not-reply, machine or unsure.
	Verdict string   `json:"verdict"`
	Reasons []string `json:"reasons,omitempty"`
	// MatchedID is the Message-ID of the mail that is answered, when it was found.
	MatchedID string `json:"matched_id,omitempty"`
}

// Parse tells how well a mail could be read.
type Parse struct {
	// Status is ok, repaired, limits or failed.
	Status   string   `json:"status"`
	Warnings []string `json:"warnings,omitempty"`
}

// Raw says where the bytes of a mail are kept.
type Raw struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// Stream and Sequence name the message that holds the raw mail.
	Stream   string `json:"stream,omitempty"`
	Sequence uint64 `json:"sequence,omitempty"`
	// Object is set instead of a message body when the mail is large.
	Object string `json:"object,omitempty"`
}

// Content is what a mail says: the part that parsed mails and contact requests share.
type Content struct {
	// ReceivedAt is INTERNALDATE; on POP3 the date of the topmost Received header, else the time of fetching.
	ReceivedAt time.Time `json:"received_at"`
	SentAt     time.Time `json:"sent_at,omitzero"`
	From       *Address  `json:"from,omitempty"`
	ReplyTo    []Address `json:"reply_to,omitempty"`
	To         []Address `json:"to,omitempty"`
	CC         []Address `json:"cc,omitempty"`
	// Subject is decoded (RFC 2047).
	Subject string `json:"subject,omitempty"`
	// MessageID, InReplyTo and References keep their angle brackets.
	MessageID  string   `json:"message_id,omitempty"`
	InReplyTo  []string `json:"in_reply_to,omitempty"`
	References []string `json:"references,omitempty"`
	// Text is UTF-8, from the plain part or from the HTML.
	Text          string `json:"text,omitempty"`
	TextTruncated bool   `json:"text_truncated,omitempty"`
	// TextReply is Text without quotes and signature.
	TextReply   string       `json:"text_reply,omitempty"`
	HasHTML     bool         `json:"has_html"`
	Attachments []Attachment `json:"attachments,omitempty"`
	Reply       Reply        `json:"reply"`
	// Machine is dsn, mdn, auto-reply, bulk, list or feedback; absent for a person's mail.
	Machine string `json:"machine,omitempty"`
	Parse   Parse  `json:"parse"`
	Raw     Raw    `json:"raw"`
}

// ContactRequest is the body of `received` and `replied`. Every mail makes exactly one of the two.
type ContactRequest struct {
	Event string `json:"event"`
	// Request is the request this event belongs to: for `received` the mail's own key, for `replied` the request that
	// the mail joins.
	Request      string       `json:"request"`
	Mail         string       `json:"mail"`
	Revision     int          `json:"revision"`
	Source       SourceRef    `json:"source"`
	Workflow     string       `json:"workflow"`
	Conversation Conversation `json:"conversation"`
	Content
}

// ParsedMail is the body of `mail.v1.parsed`.
type ParsedMail struct {
	Mail  string `json:"mail"`
	Stamp Stamp  `json:"stamp"`
	Place Place  `json:"place"`
	Content
}

// SkippedMail is the body of `mail.v1.skipped`: a mail that stays in its mailbox, and why. It never carries a body.
type SkippedMail struct {
	// Mail is empty when the mail was left on account of its headers alone.
	Mail       string    `json:"mail,omitempty"`
	Source     SourceRef `json:"source"`
	Place      Place     `json:"place"`
	MessageID  string    `json:"message_id,omitempty"`
	From       *Address  `json:"from,omitempty"`
	Subject    string    `json:"subject,omitempty"`
	ReceivedAt time.Time `json:"received_at,omitzero"`
	SkippedAt  time.Time `json:"skipped_at"`
	// Reason is skipped (no reply), unsure, oversize, before_start, flagged or put_back.
	Reason string `json:"reason"`
	Reply  Reply  `json:"reply,omitzero"`
	Stage  string `json:"stage"`
}

// Evaluate is the body of `mail.v1.evaluate`: look at a stored mail again, for this place and under this stamp.
type Evaluate struct {
	Mail  string `json:"mail"`
	Stamp Stamp  `json:"stamp"`
	Place Place  `json:"place"`
	// Reason is seen-again (its bytes came from another place, or once more) or stuck (stored, but never decided).
	Reason string `json:"reason"`
}

// Dispose is the body of `mailbox.v1.dispose`: an order to the archiver. It is published only after the mail's event is
// stored.
type Dispose struct {
	Mail        string      `json:"mail"`
	Source      SourceRef   `json:"source"`
	Disposition Disposition `json:"disposition"`
	Place       Place       `json:"place"`
	MessageID   string      `json:"message_id,omitempty"`
	Raw         Raw         `json:"raw"`
	OrderedAt   time.Time   `json:"ordered_at"`
}

// Outcomes of an order to the archiver.
const (
	OutcomeArchived   = "archived"
	OutcomeDeleted    = "deleted"
	OutcomeGone       = "gone"       // no longer there: somebody else moved or deleted it
	OutcomeFlagged    = "flagged"    // copied to the archive and flagged \Deleted; the server cannot remove single mails
	OutcomeLeft       = "left"       // left where it is: the source is gone, or deleting is no longer wanted
	OutcomeSuperseded = "superseded" // the place belongs to another epoch or UIDVALIDITY
	OutcomeMismatch   = "mismatch"   // something else lies at this place now: not touched
)

// Disposed is the body of `mailbox.v1.disposed`: what came of an order.
type Disposed struct {
	Mail       string    `json:"mail"`
	Source     SourceRef `json:"source"`
	Place      Place     `json:"place"`
	Outcome    string    `json:"outcome"`
	Mailbox    string    `json:"mailbox,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	DisposedAt time.Time `json:"disposed_at"`
}

// DeadLetter is the body of `dead-letter.v1`: a message that a stage gave up on, kept whole.
type DeadLetter struct {
	Stage    string    `json:"stage"`
	Source   string    `json:"source"`
	Mail     string    `json:"mail"`
	Code     string    `json:"code"`
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts"`
	At       time.Time `json:"at"`
	Message  Kept      `json:"message"`
}

// Kept is a message as it was stored, with the base64 of its body.
type Kept struct {
	Stream   string            `json:"stream"`
	Sequence uint64            `json:"sequence"`
	Subject  string            `json:"subject"`
	Header   map[string]string `json:"header,omitempty"`
	Body     []byte            `json:"body,omitempty"`
}

// SourceEvent is the body of `source.v1.{created,changed,removed}`. It carries no secret.
type SourceEvent struct {
	Source    SourceRef `json:"source"`
	Revision  uint64    `json:"revision"`
	Epoch     string    `json:"epoch"`
	Changed   []string  `json:"changed,omitempty"` // names of the fields that changed
	ManagedBy string    `json:"managed_by,omitempty"`
	At        time.Time `json:"at"`
}

// StateEvent is the body of `source.v1.state`: the state of a source changed.
type StateEvent struct {
	Source SourceRef `json:"source"`
	// State is ok, connecting, failing, degraded, stale or paused.
	State    string    `json:"state"`
	Previous string    `json:"previous,omitempty"`
	Code     string    `json:"code,omitempty"`
	Text     string    `json:"text,omitempty"`
	Since    time.Time `json:"since"`
}

// MailboxResetEvent is the body of `source.v1.mailbox-reset`: the server gave the mailbox a new UIDVALIDITY, so every
// place in it is new. Mails keep their keys.
type MailboxResetEvent struct {
	Source   SourceRef `json:"source"`
	Previous uint32    `json:"previous_uid_validity"`
	Now      uint32    `json:"uid_validity"`
	At       time.Time `json:"at"`
}

// AuditEvent is the body of `audit.v1`: who did what to which object. It carries no content.
type AuditEvent struct {
	Actor  string    `json:"actor"`
	Action string    `json:"action"`
	Object string    `json:"object,omitempty"`
	Fields []string  `json:"fields,omitempty"`
	At     time.Time `json:"at"`
}

// Skipped is what the bucket `skipped` keeps, under <source>.<mail>, of a stored mail that the parser has left in its
// mailbox: what it decided, and under which revision of the source.
type Skipped struct {
	Verdict  string `json:"verdict"`
	Revision uint64 `json:"revision"`
}
