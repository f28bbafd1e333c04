package fault

// The codes of Posthorn. Each has its text in the catalogue; a test holds the two together.
const (
	PolicyPort    Code = "policy.port_not_allowed"
	PolicyAddress Code = "policy.address_not_allowed"
	PolicyOAuth   Code = "policy.oauth_not_available"
	PolicyPaused  Code = "policy.paused"

	PolicyNotValid      Code = "policy.not_valid"       // settings that break a rule
	PolicyManagedByFile Code = "policy.managed_by_file" // what a sources file manages is read-only elsewhere

	DNSNoSuchHost Code = "dns.no_such_host"
	DNSFailed     Code = "dns.lookup_failed"

	TCPRefused     Code = "tcp.refused"
	TCPTimeout     Code = "tcp.timeout"
	TCPUnreachable Code = "tcp.unreachable"
	TCPClosed      Code = "tcp.closed"

	TLSMode        Code = "tls.mode"        // TLS spoken to a plain port, or the other way round
	TLSExpired     Code = "tls.expired"     // certificate out of its time
	TLSName        Code = "tls.name"        // certificate made for another name
	TLSUnknownCA   Code = "tls.unknown_ca"  // unknown issuer
	TLSHandshake   Code = "tls.handshake"   // anything else about TLS
	TLSNoSTARTTLS  Code = "tls.no_starttls" // the server offers no STARTTLS or STLS
	TLSPreAuth     Code = "tls.preauth"     // greeted as signed in before TLS
	TLSExpiresSoon Code = "tls.expires_soon"

	AuthRejected           Code = "auth.rejected"
	AuthPasswordNotAllowed Code = "auth.password_not_allowed"
	AuthExpired            Code = "auth.expired"
	AuthMechanism          Code = "auth.mechanism" // no sign-in mechanism in common
	AuthKey                Code = "auth.key_missing"

	LimitConnections Code = "limit.too_many_connections"
	LimitInUse       Code = "limit.in_use" // POP3 maildrop locked by another session
	LimitBackOff     Code = "limit.back_off"
	LimitUnavailable Code = "limit.unavailable"

	MailboxMissing   Code = "mailbox.missing"
	MailboxReadOnly  Code = "mailbox.read_only"
	MailboxDenied    Code = "mailbox.denied"
	MailboxNoSent    Code = "mailbox.no_sent"
	MailboxNoUIDL    Code = "mailbox.no_uidl"
	MailboxOverQuota Code = "mailbox.over_quota"

	ArchiveRefused Code = "archive.refused"
	ArchiveCreate  Code = "archive.cannot_create"
	ArchiveNoMove  Code = "archive.no_uidplus"

	ProtocolTimeout  Code = "protocol.timeout" // a connected server stopped answering
	ProtocolClosed   Code = "protocol.closed"
	ProtocolBroken   Code = "protocol.broken"   // an answer that is no IMAP or POP3
	ProtocolTooMuch  Code = "protocol.too_much" // more bytes than any honest answer has
	ProtocolWrong    Code = "protocol.wrong"    // POP3 spoken on an IMAP source or the other way round
	ProtocolDisabled Code = "protocol.disabled" // protocol switched off for this account
	ProtocolRefused  Code = "protocol.refused"  // a command was answered NO, BAD or -ERR without a reason we know
	ProtocolShort    Code = "protocol.short_body"
	ProtocolEmpty    Code = "protocol.empty_body"

	MailTooLarge Code = "mail.too_large"
	MailLimits   Code = "mail.limits"
	MailFailed   Code = "mail.failed"  // a stage gave up on the mail
	MailCrashed  Code = "mail.crashed" // the process died with this mail in hand, three times

	StoreUnknown     Code = "store.unknown_error"
	StoreUnavailable Code = "store.unavailable"
	StoreFull        Code = "store.full"
	StoreDenied      Code = "store.denied"
	StoreNotDurable  Code = "store.not_durable"
	StoreMissing     Code = "store.not_provisioned"
	StoreConflict    Code = "store.conflict" // a record changed since it was read
	StoreNotFound    Code = "store.not_found"
	StoreForeign     Code = "store.foreign"        // the store is empty or older than the data directory knows
	StoreCorrupt     Code = "store.corrupt"        // a stored mail differs from its digest
	StoreNobody      Code = "store.nobody_answers" // no stage is there to answer a request
)
