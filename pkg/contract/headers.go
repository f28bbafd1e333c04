package contract

// Headers of every event: CloudEvents 1.0 attributes in NATS binary mode. NATS compares header names byte by byte.
const (
	HeaderSpecVersion = "ce-specversion"
	HeaderID          = "ce-id"
	HeaderSource      = "ce-source"
	HeaderType        = "ce-type"
	HeaderSubject     = "ce-subject"
	HeaderTime        = "ce-time"
	HeaderDataSchema  = "ce-dataschema"
	// HeaderReplay is present on what a replay published.
	HeaderReplay      = "ce-replay"
	HeaderContentType = "content-type"
	HeaderTraceParent = "traceparent"
	HeaderMsgID       = "Nats-Msg-Id"
)

// Headers of a raw mail, beside those of every event.
const (
	// HeaderStamp is the [Stamp] of the mail as JSON.
	HeaderStamp = "posthorn-stamp"
	// HeaderPlace is the [Place] of the mail as JSON.
	HeaderPlace = "posthorn-place"
	// HeaderReceivedAt is the time of receipt, RFC 3339 in UTC.
	HeaderReceivedAt = "posthorn-received-at"
	// HeaderSHA256 is the digest of the raw mail, 64 hexadecimal digits.
	HeaderSHA256 = "posthorn-sha256"
	// HeaderSize is the size of the raw mail in bytes.
	HeaderSize = "posthorn-size"
	// HeaderObject names the object that holds the raw mail when the message body is empty (claim check).
	HeaderObject = "posthorn-object"
	// HeaderPartial is there when only the header block of an oversize mail was taken in: the size, in bytes, that the
	// server announced for the whole mail.
	HeaderPartial = "posthorn-partial"
	// HeaderMail is the key of the mail that a message is about, wherever the subject does not carry it.
	HeaderMail = "posthorn-mail"
	// HeaderMessageID is the [MessageIDKey] of the mail, for finding its receipt.
	HeaderMessageID = "posthorn-message-id-key"
)

// Headers of the chunks that answer a content request.
const (
	// HeaderChunk numbers the chunks of one answer from 0.
	HeaderChunk = "Posthorn-Chunk"
	// HeaderLast is "true" on the last chunk.
	HeaderLast = "Posthorn-Last"
	// HeaderError is one of [ContentNotFound], [ContentExpired], [ContentErased] and [ContentForbidden]; such a chunk is
	// the last.
	HeaderError = "Posthorn-Error"
	// HeaderContentLength is on chunk 0: the size of the whole content in bytes.
	HeaderContentLength = "Posthorn-Content-Length"
)

// Values of [HeaderError].
const (
	ContentNotFound  = "not_found"
	ContentExpired   = "expired"
	ContentErased    = "erased"
	ContentForbidden = "forbidden"
)

// ObjectBucket is the object store bucket that holds the raw mails too large for a message.
const ObjectBucket = "mail"

// Event types (`ce-type`). Each has a schema file of the same name under schemas/.
const (
	TypeRaw          = "posthorn.mail.raw.v1"
	TypeParsed       = "posthorn.mail.parsed.v1"
	TypeSkipped      = "posthorn.mail.skipped.v1"
	TypeEvaluate     = "posthorn.mail.evaluate.v1"
	TypeReceived     = "posthorn.contact-request.received.v1"
	TypeReplied      = "posthorn.contact-request.replied.v1"
	TypeDispose      = "posthorn.mailbox.dispose.v1"
	TypeDisposed     = "posthorn.mailbox.disposed.v1"
	TypeDeadLetter   = "posthorn.dead-letter.v1"
	TypeSourceCreate = "posthorn.source.created.v1"
	TypeSourceChange = "posthorn.source.changed.v1"
	TypeSourceRemove = "posthorn.source.removed.v1"
	TypeSourceState  = "posthorn.source.state.v1"
	TypeMailboxReset = "posthorn.source.mailbox-reset.v1"
	TypeAudit        = "posthorn.audit.v1"
)
