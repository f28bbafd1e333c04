package parser

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/jhillyerd/enmime/v2"

	"posthorn/pkg/contract"
	"posthorn/pkg/reply"
)

// Values of `parse.status`.
const (
	StatusOK       = "ok"
	StatusRepaired = "repaired" // something was mended; the warnings say what
	StatusLimits   = "limits"   // beyond the limits: what stands in the header was taken
	StatusFailed   = "failed"   // could not be read: what stands in the header was taken
)

// Parsed is what a mail says. Its strings are valid UTF-8 without NUL, and it is below 850 KB as JSON, whatever the
// mail.
type Parsed struct {
	// Content lacks ReceivedAt, Reply and Raw, which are not in the mail. Machine is told from headers and parts.
	contract.Content
	// Header is the whole header block, for the replies-only rule. It is not part of any event.
	Header reply.Header
	// PartClass is the machine class that the parts of the mail show, for reply.Input.
	PartClass string
	// ReceivedDate is the date of the topmost Received header, zero when there is none.
	ReceivedDate time.Time
	// Limit names the limit that was exceeded when the status is StatusLimits: the parameter of the code mail.limits.
	Limit string
	// ReturnedID is, of a delivery report, the Message-ID of the mail that came back, with angle brackets.
	ReturnedID string
}

// Read reads one mail. It never fails on account of the mail: what cannot be read goes on with its header fields, a
// status and warnings. An error comes from open or from reading what it opened, or is that of the context; it is
// temporary. Size is the announced number of bytes, -1 when unknown; another number read is an error (store.corrupt).
//
// The bytes are read twice and never held as a whole; the largest attachment is held decoded.
func Read(ctx context.Context, open Opener, size int64, limits Limits) (Parsed, error) {
	limits = limits.withDefaults()
	s, err := look(ctx, open, size, limits)
	if err != nil {
		return Parsed{}, err
	}
	p := parsing{}
	p.Header = reply.ParseHeader(s.header)
	p.fields()
	if s.over != "" {
		p.limit(s.over)
		return p.done(), nil
	}
	if s.noHeader {
		if s.size-s.offset <= 0 {
			p.failed = true
			p.warn("empty")
			return p.done(), nil
		}
		p.repair("no-header")
	}
	if s.mended {
		p.repair("header-start")
	}
	if s.bareCR {
		p.repair("bare-cr")
	}
	t, limit, err := readTree(ctx, open, &s, p.Header, limits)
	if err == nil && t.root == nil && limit == "" {
		p.failed = true
		p.warn("mime-failed")
		s.flat = true // what enmime refuses is shown as it stands
		t, limit, err = readTree(ctx, open, &s, p.Header, limits)
	}
	if err != nil {
		return Parsed{}, err
	}
	for _, w := range t.warnings {
		p.repair(w)
	}
	switch {
	case limit != "":
		p.limit(limit)
	case t.root == nil:
		p.failed = true
	default:
		if t.deep {
			p.limit("depth")
		}
		p.parts(t.root)
	}
	return p.done(), nil
}

// parsing is a mail while it is read.
type parsing struct {
	Parsed
	warned   []string
	repaired bool
	failed   bool
}

// warn notes a code once.
func (p *parsing) warn(code string) {
	if len(p.warned) < maxWarnings && !slices.Contains(p.warned, code) {
		p.warned = append(p.warned, code)
	}
}

// repair notes something that was mended.
func (p *parsing) repair(code string) {
	p.repaired = true
	p.warn(code)
}

func (p *parsing) limit(name string) {
	if p.Limit == "" {
		p.Limit = name
	}
	p.warn("limit-" + strings.ReplaceAll(name, " ", "-"))
}

func (p *parsing) done() Parsed {
	p.Parse = contract.Parse{Status: StatusOK, Warnings: p.warned}
	switch {
	case p.failed:
		p.Parse.Status = StatusFailed
	case p.Limit != "":
		p.Parse.Status = StatusLimits
	case p.repaired:
		p.Parse.Status = StatusRepaired
	}
	return p.Parsed
}

// fields takes what the header says.
func (p *parsing) fields() {
	h := p.Header
	from := p.addresses(h.All("From"), 1)
	if len(from) == 0 {
		from = p.addresses(h.All("Sender"), 1)
	}
	if len(from) > 0 {
		p.From = &from[0]
	}
	p.ReplyTo = p.addresses(h.All("Reply-To"), maxReplyTo)
	p.To = p.addresses(h.All("To"), maxAddresses)
	p.CC = p.addresses(h.All("Cc"), maxAddresses)
	subject, cut := clip(h.Text("Subject"), maxSubjectJSON, maxSubjectJSON)
	if p.Subject = subject; cut {
		p.warn("subject-truncated")
	}
	if strings.ContainsRune(subject, '\uFFFD') {
		p.repair(reply.CharsetDamaged)
	}

	ids := p.ids(h.All("Message-ID"))
	if len(ids) > 0 {
		p.MessageID = ids[0]
	}
	if len(h.All("Message-ID")) > 1 {
		p.warn("message-id-repeated")
	} else if len(ids) == 0 {
		p.warn("message-id-missing")
	}
	p.InReplyTo = p.ids(h.All("In-Reply-To"))
	if len(p.InReplyTo) > maxInReplyTo {
		p.InReplyTo = p.InReplyTo[:maxInReplyTo]
		p.warn("in-reply-to-truncated")
	}
	p.References = p.ids(h.All("References"))
	if over := len(p.References) - maxReferences; over > 0 {
		p.References = slices.Clone(p.References[over:])
		p.warn("references-truncated")
	}

	sentAt, ok := reply.SentDate(h)
	if p.SentAt = sentAt; !ok && h.Get("Date") != "" {
		p.warn("date-unreadable")
	}
	p.ReceivedDate, _ = reply.ReceivedDate(h)
	p.Machine, _ = reply.Machine(h)
}

// addresses reads at most n addresses.
func (p *parsing) addresses(values []string, n int) []contract.Address {
	list := reply.Addresses(values)
	if len(list) > n {
		list = slices.Clone(list[:n])
		p.warn("addresses-truncated")
	}
	for i := range list {
		list[i].Name, _ = clip(list[i].Name, maxNameJSON, maxNameJSON)
		list[i].Address, _ = clip(list[i].Address, maxAddressJSON, maxAddressJSON)
	}
	if len(list) == 0 {
		return nil
	}
	return list
}

// ids reads ids and leaves out those that no event can carry.
func (p *parsing) ids(values []string) []string {
	return slices.DeleteFunc(reply.IDs(values), func(id string) bool {
		tooLong := jsonSize(id) > maxIDJSON
		if tooLong {
			p.warn("id-too-long")
		}
		return tooLong
	})
}

// parts takes what the parts say, and lets go of their content as it goes.
func (p *parsing) parts(root *enmime.Part) {
	for _, e := range enmimeErrors(root) {
		p.repair(e)
	}
	list := leaves(root)
	p.HasHTML = len(bodies(root, list, true)) > 0
	p.text(bodies(root, list, false))
	for _, l := range list {
		p.report(l)
		if l.plain || l.html {
			l.part.Content = nil
			continue
		}
		if len(p.Attachments) == maxAttachments {
			p.limit("attachments")
			break
		}
		p.Attachments = append(p.Attachments, l.attachment())
		l.part.Content = nil
	}
	p.Machine = reply.Stronger(p.Machine, p.PartClass)
}

// text sets Text and TextReply.
func (p *parsing) text(body []*leaf) {
	var text, own strings.Builder
	for _, l := range body {
		var part passage
		var repaired string
		cut := false
		if l.plain {
			part, repaired = plainPassage(l)
		} else {
			part, repaired, cut = htmlPassage(l)
		}
		if repaired != "" {
			p.repair(repaired)
		}
		p.TextTruncated = p.TextTruncated || cut
		whole, mine := part.text, remove(part.text, part.quoted)
		if part.html {
			whole, mine = tidy(whole), tidy(mine)
		}
		if strings.TrimSpace(whole) == "" {
			continue
		}
		if text.Len() > maxText {
			p.TextTruncated = true
			break
		}
		p.TextTruncated = add(&text, whole) || p.TextTruncated
		add(&own, mine)
	}
	whole, cut := clip(text.String(), maxText, maxTextJSON)
	p.Text, p.TextTruncated = whole, p.TextTruncated || cut
	mine := own.String()
	if strings.TrimSpace(mine) == "" {
		mine = whole
	}
	mine, _ = clip(mine, maxText, 6*maxText) // folding works on no more than Text can hold
	p.TextReply, cut = clip(foldQuotes(mine), maxReply, maxReplyJSON)
	if cut {
		p.warn("text-reply-truncated")
	}
}

// add appends a piece of text after an empty line, at most what an event can hold, and tells whether it was cut.
func add(to *strings.Builder, piece string) (cut bool) {
	piece, cut = clip(piece, maxText, 6*maxText)
	piece = strings.TrimRight(strings.TrimLeft(piece, "\n"), " \t\n")
	if to.Len() > 0 && piece != "" {
		to.WriteString("\n\n")
	}
	to.WriteString(piece)
	return cut
}

// report looks for the parts of machine reports (RFC 6522).
func (p *parsing) report(l *leaf) {
	switch l.media {
	case "message/delivery-status", "message/global-delivery-status":
		p.PartClass = reply.ClassDSN
	case "message/disposition-notification", "message/global-disposition-notification":
		p.PartClass = reply.ClassMDN
	case "message/feedback-report":
		p.PartClass = reply.ClassFeedback
	case "message/rfc822", "message/global", "text/rfc822-headers", "message/rfc822-headers":
		if p.ReturnedID == "" && (p.PartClass == reply.ClassDSN || p.Machine == reply.ClassDSN) {
			const enough = 256 << 10
			content := l.content()
			ids := p.ids(reply.ParseHeader(content[:min(len(content), enough)]).All("Message-ID"))
			if len(ids) > 0 {
				p.ReturnedID = ids[0]
			}
		}
	}
}

// attachment describes a leaf that is no text of the mail.
func (l *leaf) attachment() contract.Attachment {
	content := l.content()
	sum := sha256.Sum256(content)
	a := contract.Attachment{
		Index:  l.index,
		Size:   int64(len(content)),
		SHA256: hex.EncodeToString(sum[:]),
		Inline: l.inline,
	}
	a.Filename, _ = clip(l.name, maxFileJSON, maxFileJSON)
	a.ContentType, _ = clip(clean(l.media), maxTypeJSON, maxTypeJSON)
	a.ContentID, _ = clip(clean(l.part.ContentID), maxFileJSON, maxFileJSON)
	return a
}

// clean makes a short string valid UTF-8 on one line.
func clean(s string) string {
	s, _ = reply.ToUTF8([]byte(s), "")
	return reply.DecodeWords(s)
}

// bodies are the leaves whose text is the mail's own, in order. Of alternatives one is taken: the plain one unless
// it is blank or HTML is wanted.
func bodies(root *enmime.Part, list []*leaf, wantHTML bool) []*leaf {
	byPart := make(map[*enmime.Part]*leaf, len(list))
	for _, l := range list {
		byPart[l.part] = l
	}
	var collect func(p *enmime.Part) []*leaf
	collect = func(p *enmime.Part) []*leaf {
		if l := byPart[p]; l != nil {
			if l.html || l.plain && !wantHTML {
				return []*leaf{l}
			}
			return nil
		}
		var all, chosen []*leaf
		alternative := strings.EqualFold(p.ContentType, "multipart/alternative")
		for c := p.FirstChild; c != nil; c = c.NextSibling {
			found := collect(c)
			if len(found) == 0 {
				continue
			}
			if alternative {
				plain := slices.ContainsFunc(found, func(l *leaf) bool { return l.plain && !blank(l.content()) })
				if plain && !wantHTML {
					return found
				}
				chosen = found // the last is the richest (RFC 2046 section 5.1.4)
				continue
			}
			all = append(all, found...)
		}
		if alternative {
			return chosen
		}
		return all
	}
	return collect(root)
}

func blank(b []byte) bool {
	return len(bytes.Trim(b, " \t\r\n\xc2\xa0")) == 0
}

// enmimeErrors are the codes of what enmime found wrong.
func enmimeErrors(root *enmime.Part) []string {
	var codes []string
	root.DepthMatchAll(func(p *enmime.Part) bool {
		for _, e := range p.Errors {
			switch e.Name {
			case enmime.ErrorMissingContentType, enmime.ErrorPlainTextFromHTML:
				continue // allowed
			}
			code := strings.ReplaceAll(strings.ToLower(e.Name), " ", "-")
			if !slices.Contains(codes, code) {
				codes = append(codes, code)
			}
		}
		return false
	})
	return codes
}

// clip cuts s at a character so that it has at most n bytes, and at most escaped bytes inside a JSON string.
func clip(s string, n, escaped int) (string, bool) {
	size := 0
	for i, r := range s {
		length := len(string(r))
		size += jsonRune(r)
		if i+length > n || size > escaped {
			return s[:i], true
		}
	}
	return s, false
}

// jsonSize is the length of s inside a JSON string as encoding/json writes it.
func jsonSize(s string) int {
	size := 0
	for _, r := range s {
		size += jsonRune(r)
	}
	return size
}

func jsonRune(r rune) int {
	switch {
	case r == '"' || r == '\\' || r == '\n' || r == '\r' || r == '\t' || r == '\b' || r == '\f':
		return 2
	case r < ' ' || r == '<' || r == '>' || r == '&' || r == '\u2028' || r == '\u2029':
		return 6
	}
	return len(string(r))
}
