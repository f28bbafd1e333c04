package contract

import (
	"fmt"
	"hash/fnv"
	"regexp"
	"strconv"
	"strings"
)

// Stream is the name of a JetStream stream.
type Stream string

// The streams of Posthorn. See schemas/asyncapi.yaml for what each holds and for how long.
const (
	StreamMail            Stream = "MAIL"
	StreamParsed          Stream = "PARSED"
	StreamContactRequests Stream = "CONTACT_REQUESTS"
	StreamDispositions    Stream = "DISPOSITIONS"
	StreamTasks           Stream = "TASKS"
	StreamDeadLetters     Stream = "DEAD_LETTERS"
	StreamSources         Stream = "SOURCES"
	StreamAudit           Stream = "AUDIT"
)

// Shards is the number of shards over which sources are spread. It never changes: it is part of subjects.
const Shards = 64

// Event tokens of the contact-request subjects.
const (
	EventReceived  = "received"
	EventReplied   = "replied"
	EventRevised   = "revised"
	EventAssigned  = "assigned"
	EventConverted = "converted"
	EventAttached  = "attached"
	EventDismissed = "dismissed"
	EventAnswered  = "answered"
	EventReopened  = "reopened"
	EventErased    = "erased"
)

// Event tokens of the source subjects.
const (
	SourceCreated      = "created"
	SourceChanged      = "changed"
	SourceRemoved      = "removed"
	SourceState        = "state"
	SourceMailboxReset = "mailbox-reset"
)

var token = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)

// ValidToken tells whether s may stand in a subject as the id of a source, workflow, mail, request or task:
// 1 to 64 characters of a-z, 0-9, _ and -.
func ValidToken(s string) bool { return token.MatchString(s) }

// RawSubject is where the raw bytes of one mail are stored: one message per subject, for ever.
func RawSubject(source, mail string) string { return "mail.v1.raw." + source + "." + mail }

// ParsedSubject carries the parsed mails of one source.
func ParsedSubject(source string) string { return "mail.v1.parsed." + source }

// SkippedSubject carries the decisions to leave a mail of one source in its mailbox.
func SkippedSubject(source string) string { return "mail.v1.skipped." + source }

// EvaluateSubject carries the orders to look at a stored mail of one source again.
func EvaluateSubject(source string) string { return "mail.v1.evaluate." + source }

// ContactRequestSubject is the subject of one event of one contact request.
func ContactRequestSubject(event, workflow, source, key string) string {
	return "contact-request.v1." + event + "." + workflow + "." + source + "." + key
}

// ContactRequestFilter matches every event of one key of one source, whatever its event and workflow. An empty answer
// to it is the proof that the mail has made no request yet.
func ContactRequestFilter(source, key string) string {
	return ContactRequestSubject("*", "*", source, key)
}

// DisposeSubject carries the orders to the archiver for one source.
func DisposeSubject(source string) string {
	return "mailbox.v1.dispose." + strconv.Itoa(Shard(source)) + "." + source
}

// DisposedSubject carries what came of the orders for one source.
func DisposedSubject(source string) string {
	return "mailbox.v1.disposed." + strconv.Itoa(Shard(source)) + "." + source
}

// DeadLetterSubject is where a mail is set aside by a stage that gave up on it.
func DeadLetterSubject(stage, source, mail string) string {
	return "dead-letter.v1." + stage + "." + source + "." + mail
}

// SourceSubject carries the life of one source.
func SourceSubject(event, source string) string { return "source.v1." + event + "." + source }

// AuditSubject carries who did what; both parts are tokens.
func AuditSubject(actor, action string) string { return "audit.v1." + actor + "." + action }

// Content kinds of the request-reply service that hands out a mail's raw bytes, its HTML or one of its parts.
const (
	ContentRaw  = "raw"
	ContentHTML = "html"
	ContentPart = "part"
)

// ContentSubject is where to request stored content of a mail; kind is [ContentRaw], [ContentHTML] or [ContentPart]
// (whose request body is {"index":n}). The answer comes in chunks, see [HeaderChunk].
func ContentSubject(kind, source, mail string) string {
	return "content.v1." + kind + "." + source + "." + mail
}

// Shard is the shard of a source, 0 to Shards-1: FNV-1a (32 bit) of its id, modulo [Shards].
func Shard(source string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(source)) // a hash never fails to write
	return int(h.Sum32() % Shards)
}

// RawKeys takes the source and the mail key out of a raw subject.
func RawKeys(subject string) (source, mail string, err error) {
	parts := strings.Split(subject, ".")
	if len(parts) != 5 || !strings.HasPrefix(subject, "mail.v1.raw.") {
		return "", "", fmt.Errorf("%q is no subject of a raw mail", subject)
	}
	return parts[3], parts[4], nil
}

// ContactRequestKeys takes the parts out of a contact-request subject.
func ContactRequestKeys(subject string) (event, workflow, source, key string, err error) {
	parts := strings.Split(subject, ".")
	if len(parts) != 6 || !strings.HasPrefix(subject, "contact-request.v1.") {
		return "", "", "", "", fmt.Errorf("%q is no subject of a contact request", subject)
	}
	return parts[2], parts[3], parts[4], parts[5], nil
}
