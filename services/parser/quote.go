package parser

import (
	"regexp"
	"strings"
)

// The words by which mail programs announce what they quote. All patterns are RE2 and are applied to single lines.
var (
	// originalMessage is a rule with words: everything below is quoted.
	originalMessage = regexp.MustCompile(`(?i)^[\s>]*[-_—–*=]{2,}\s*(?:original message|original appointment|` +
		`alkuperäinen viesti|ursprungligt meddelande|originalmeddelande|ursprüngliche nachricht|originalnachricht|` +
		`message d'origine|message original|mensaje original|messaggio originale|mensagem original|` +
		`oorspronkelijk bericht|oprindelig meddelelse|original meddelelse|opprinnelig melding|original melding|` +
		`wiadomość oryginalna|oryginalna wiadomość|исходное сообщение|пересылаемое сообщение|původní zpráva|` +
		`eredeti üzenet|mesaj original|algne kiri|orijinal mesaj|原始邮件|原始郵件|元のメッセージ|원본 메시지|` +
		`forwarded message|välitetty viesti|edelleenlähetetty viesti|vidarebefordrat meddelande|` +
		`weitergeleitete nachricht|message transféré|mensaje reenviado|reply message|reply above this line|` +
		`vastaa tämän rivin yläpuolelle)`)
	// aboveLine asks for the answer above it, as ticket systems do.
	aboveLine = regexp.MustCompile(`(?i)^[\s>]*[#-]+\s*(?:please (?:type|write) your reply above this line|` +
		`reply above this line|kirjoita vastauksesi tämän rivin yläpuolelle|vastaa tämän rivin yläpuolelle|` +
		`skriv ditt svar ovanför denna rad|bitte antworten sie oberhalb dieser zeile)\s*[#-]*\s*$`)
	// attribution says that somebody wrote; the line ends with a colon.
	attribution = regexp.MustCompile(`(?i)(?:^|[\s>),])(?:wrote|writes|schrieb|kirjoitti|skrev|ha scritto|escribió|` +
		`escreveu|schreef|napisał|napisała|napisał\(a\)|napsal|napsala|napsal\(a\)|írta|kirjutas|rakstīja|rašė|` +
		`a écrit|yazdı|a scris|пишет|писал|написал|написала)(?:[\s:,(]|$)|` +
		`写道|寫道|のメール|書きました|님이 작성`)
	// dated is what an attribution has beside the verb: a date, a time or an address.
	dated = regexp.MustCompile(`@|\d{1,4}[./-]\d{1,2}|\d{1,2}[:.]\d{2}|(?:19|20)\d\d`)
	// headerFrom and headerOther are the lines of a header block that Outlook puts above what it quotes.
	headerFrom = regexp.MustCompile(`(?i)^[\s>]*\*?(?:from|lähettäjä|från|fra|von|de|da|van|od|от|отправитель|` +
		`feladó|saatja|kimden|发件人|寄件者|差出人|보낸 사람)\s*[:\x{FF1A}]\*?\s*\S`)
	headerOther = regexp.MustCompile(`(?i)^[\s>]*\*?(?:sent|date|to|cc|subject|lähetetty|päivämäärä|päiväys|pvm|` +
		`vastaanottaja|kopio|aihe|otsikko|skickat|datum|till|kopia|ämne|sendt|dato|til|emne|gesendet|an|betreff|envoyé|à|` +
		`objet|enviado|enviada|fecha|para|asunto|assunto|data|inviato|a|oggetto|verzonden|aan|onderwerp|wysłano|do|temat|` +
		`отправлено|дата|кому|копия|тема|发送时间|收件人|抄送|主题|寄件日期|收件者|主旨|送信日時|宛先|件名|日時)\s*[:\x{FF1A}]`)
	// deviceLine is what telephones put under a mail.
	deviceLine = regexp.MustCompile(`(?i)^\s*(?:sent from (?:my |mail for|outlook|yahoo|proton|samsung)|get outlook for|` +
		`sent with |lähetetty (?:minun )?(?:iphone|ipad|samsung|android|windows|laitteesta|outlook|puhelime)|` +
		`lähetetty .{0,40}(?:iphonesta|ipadista|puhelimesta|laitteesta)|hanki outlook|hae outlook|` +
		`skickat från|hämta outlook|von meinem |gesendet (?:von|mit)|sendt fra|envoyé de (?:mon|mobile)|` +
		`enviado desde|inviato da|verstuurd vanaf|` +
		`wysłane z |отправлено (?:с|из)|发自我的|iphoneから送信).{0,80}$`)
)

// foldQuotes is text without what it quotes and without its signature. When nothing else is there, text itself is
// returned: a mail that only forwards says what it forwards. Nothing is ever lost; `text` has everything.
func foldQuotes(text string) string {
	folded := fold(text)
	if strings.TrimSpace(folded) == "" {
		return strings.TrimSpace(text)
	}
	return folded
}

func fold(text string) string {
	lines := strings.Split(text, "\n")
	kept := make([]string, 0, len(lines))
	for i := 0; i < len(lines); i++ {
		line := strings.TrimRight(lines[i], " \t\u00a0")
		switch {
		case quotedLine(line):
		case line == "--" && i > 0, lines[i] == "-- ", line == "--\u00a0":
			// A signature ends with the mail, or where a quotation starts (and an answer below it may follow).
			for i+1 < len(lines) && !quotedLine(lines[i+1]) && attributionAt(lines, i+1) == 0 {
				i++
			}
		case cutsRest(lines, i):
			return finish(kept)
		default:
			if n := attributionAt(lines, i); n > 0 {
				next := i + n
				for next < len(lines) && strings.TrimSpace(lines[next]) == "" {
					next++
				}
				if next < len(lines) && !quotedLine(lines[next]) {
					return finish(kept) // quoted without marks: everything below
				}
				i += n - 1
				continue
			}
			kept = append(kept, line)
		}
	}
	return finish(kept)
}

func quotedLine(line string) bool {
	return strings.HasPrefix(strings.TrimLeft(line, " \t"), ">")
}

// cutsRest tells whether everything from line i on is quoted.
func cutsRest(lines []string, i int) bool {
	line := lines[i]
	if len(line) > 400 {
		return false
	}
	if start := strings.TrimLeft(line, " \t>"); start != "" && strings.IndexByte("-_*=#\xe2", start[0]) >= 0 &&
		(originalMessage.MatchString(line) || aboveLine.MatchString(line)) {
		return true
	}
	if strings.HasPrefix(line, "________________") { // Outlook's rule, followed by its header block
		i++
		for i < len(lines) && strings.TrimSpace(lines[i]) == "" {
			i++
		}
		if i == len(lines) {
			return false
		}
		line = lines[i]
	}
	if len(line) > 400 || !strings.ContainsAny(line[:min(len(line), 60)], ":\uff1a") || !headerFrom.MatchString(line) {
		return false
	}
	others, looked := 0, 0
	for _, next := range lines[i+1:] {
		if strings.TrimSpace(next) == "" {
			if others > 0 {
				break
			}
			continue
		}
		if looked++; looked > 6 {
			break
		}
		if len(next) <= 2000 && headerOther.MatchString(next) {
			others++
		}
	}
	return others >= 2
}

// attributionAt tells how many lines an attribution such as "On Monday Anna wrote:" takes from line i on; 0 when
// there is none. It may be broken over three lines.
func attributionAt(lines []string, i int) int {
	const longest = 500
	joined := ""
	for n := 1; n <= 3 && i+n <= len(lines); n++ {
		line := strings.TrimSpace(lines[i+n-1])
		if line == "" || quotedLine(line) || len(joined)+len(line) > longest {
			return 0
		}
		if n > 1 {
			joined += " "
		}
		joined += line
		if last := line[len(line)-1]; last != ':' && !strings.HasSuffix(line, "\uff1a") {
			continue
		}
		switch {
		case !attribution.MatchString(joined), !dated.MatchString(joined):
			return 0
		case n > 1 && !attributionStart(lines[i]): // the first line is the person's own
			return 0
		}
		return n
	}
	return 0
}

// attributionStart tells whether a line can be the first of a broken attribution.
func attributionStart(line string) bool {
	line = strings.ToLower(strings.TrimSpace(line))
	if line != "" && line[0] >= '0' && line[0] <= '9' {
		return true
	}
	first, _, _ := strings.Cut(line, " ")
	switch strings.TrimRight(first, ".,") {
	case "on", "am", "den", "le", "el", "il", "em", "op", "på", "dnia", "dne", "w", "ma", "ti", "ke", "to", "pe", "la",
		"su",
		"mån", "tis", "ons", "tors", "fre", "lör", "sön":
		return true
	}
	return strings.Contains(line, "<") && strings.Contains(line, "@")
}

// finish takes telephone lines and rules off the end, and empty lines beyond one wherever they are.
func finish(lines []string) string {
	for len(lines) > 0 {
		last := strings.TrimSpace(lines[len(lines)-1])
		rule := len(last) >= 10 && strings.Trim(last, "_-") == ""
		if last != "" && !rule && !(len(last) <= 120 && deviceLine.MatchString(last)) {
			break
		}
		lines = lines[:len(lines)-1]
	}
	return strings.TrimSpace(tidy(strings.Join(lines, "\n")))
}
