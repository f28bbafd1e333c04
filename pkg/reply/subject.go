package reply

import "strings"

// prefixKind is what a subject's prefix says: answered, forwarded, or nothing.
type prefixKind int

const (
	noPrefix prefixKind = iota
	replyPrefix
	forwardPrefix
)

// prefixes are the words that mail programs put before the colon, in lower case. In Finnish VS answers and VL forwards;
// SV answers in Swedish, Norwegian and Danish.
var prefixes = func() map[string]prefixKind {
	m := make(map[string]prefixKind)
	for kind, words := range map[prefixKind]string{
		replyPrefix: "re r sv vs aw antw antwort odp rif ynt vá ref res rsp rép rép. re. 回复 回覆 答复 答覆 返信 ответ отв atb ats " +
			"απ σχετ hf bls cevap yan תשובה השב",
		forwardPrefix: "fw fwd vl vb wg doorst rv enc tr pd ilt i 转发 轉寄 転送 továbbítás",
	} {
		for _, word := range strings.Fields(words) {
			m[word] = kind
		}
	}
	return m
}()

// cutPrefix takes one prefix such as "Re:", "VS :", "AW[2]:", "Re^3:", "RE(2):" or "回复:" off a subject.
func cutPrefix(subject string) (kind prefixKind, rest string) {
	const longest = 32
	subject = strings.TrimLeft(subject, " \t\u00a0\u3000")
	for i, r := range subject {
		if i > longest {
			break
		}
		if r != ':' && r != '\uff1a' { // full-width, in Chinese and Japanese
			continue
		}
		word := strings.ToLower(strings.TrimSpace(subject[:i]))
		word = strings.TrimRight(word, "0123456789[]()^* ")
		if kind = prefixes[word]; kind == noPrefix {
			return noPrefix, subject
		}
		return kind, subject[i+len(string(r)):]
	}
	return noPrefix, subject
}

// cutTag takes a leading "[tag]" off a subject, as mailing lists and gateways put it.
func cutTag(subject string) (tag, rest string, ok bool) {
	subject = strings.TrimLeft(subject, " \t")
	if !strings.HasPrefix(subject, "[") {
		return "", subject, false
	}
	end := strings.IndexByte(subject[:min(len(subject), 64)], ']')
	if end < 2 {
		return "", subject, false
	}
	return subject[:end+1], subject[end+1:], true
}

// subjectPrefix tells what the outermost prefix of a decoded subject says; a leading "[tag]" is looked over.
func subjectPrefix(subject string) prefixKind {
	kind, _ := cutPrefix(subject)
	if kind == noPrefix {
		if _, rest, ok := cutTag(subject); ok {
			kind, _ = cutPrefix(rest)
		}
	}
	return kind
}

// NormalSubject is a decoded subject without reply and forward prefixes in any language, with single blanks: two mails
// of one conversation have the same. A leading "[tag]" stays.
func NormalSubject(subject string) string {
	tag := ""
	for {
		kind, rest := cutPrefix(subject)
		if kind != noPrefix {
			subject = rest
			continue
		}
		t, rest, ok := cutTag(subject)
		if !ok {
			break
		}
		kind, after := cutPrefix(rest)
		if kind == noPrefix {
			break
		}
		if tag == "" {
			tag = t
		}
		subject = after
	}
	words := strings.Fields(subject)
	if tag != "" && (len(words) == 0 || words[0] != tag) {
		words = append([]string{tag}, words...)
	}
	return strings.Join(words, " ")
}

// automaticSubjects are the beginnings of subjects that answering machines use, in lower case.
var automaticSubjects = []string{
	"automaattinen vastaus", "poissa", "poissaoloilmoitus", "autosvar", "automatisk svar", "automatiskt svar",
	"abwesenheitsnotiz", "abwesenheit", "automatische antwort", "out of office", "out of the office", "automatic reply",
	"auto reply", "auto-reply", "autoreply", "auto response", "réponse automatique", "absence du bureau",
	"respuesta automática", "risposta automatica", "resposta automática", "frånvaro", "fraværende", "fravær",
	"automatisch antwoord", "afwezig", "odpowiedź automatyczna", "автоответ", "自动回复", "自動回覆", "自動返信",
}

// automaticSubject tells whether a decoded subject reads like that of an answering machine.
func automaticSubject(subject string) bool {
	subject = strings.ToLower(strings.TrimSpace(subject))
	for _, start := range automaticSubjects {
		if strings.HasPrefix(subject, start) {
			return true
		}
	}
	return false
}
