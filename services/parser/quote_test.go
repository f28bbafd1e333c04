package parser

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQuotesAndSignaturesAreFoldedAway(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"nothing to fold":       {"Hi,\n\nplease call.\n\nJoe", "Hi,\n\nplease call.\n\nJoe"},
		"English":               {"Yes.\n\nOn Mon, Nov 23, 2026 at 10:15 AM Joe <j@x.org> wrote:\n> Well?", "Yes."},
		"English over lines":    {"Yes.\n\nOn Mon, Nov 23, 2026 at 10:15 AM Joe\n<j@x.org> wrote:\n\n> Well?", "Yes."},
		"no marks":              {"Yes.\n\nOn Mon, Nov 23, 2026 at 10:15 AM Joe wrote:\n\nWell?\n\nJoe", "Yes."},
		"Finnish Gmail":         {"Joo.\n\nma 23.11.2026 klo 10.15 Joe (j@x.fi) kirjoitti:\n> No?", "Joo."},
		"Finnish Thunderbird":   {"Joo.\n\nJoe Doe kirjoitti 23.11.2026 klo 10.15:\n> No?", "Joo."},
		"Finnish Outlook":       {"Joo.\n\nLähettäjä: Joe\nLähetetty: 23.11.2026\nVastaanottaja: Me\nAihe: No\n\nNo?", "Joo."},
		"Finnish rule":          {"Joo.\n\n-----Alkuperäinen viesti-----\nNo?", "Joo."},
		"Swedish":               {"Ja.\n\nDen mån 23 nov. 2026 kl 10:15 skrev Joe <j@x.se>:\n> Nå?", "Ja."},
		"Swedish Outlook":       {"Ja.\n\nFrån: Joe\nSkickat: den 23 november\nTill: Oss\nÄmne: Nå\n\nNå?", "Ja."},
		"Norwegian":             {"Ja.\n\nman. 23. nov. 2026 kl. 10:15 skrev Joe <j@x.no>:\n> Nå?", "Ja."},
		"German":                {"Ja.\n\nAm Mo., 23. Nov. 2026 um 10:15 Uhr schrieb Joe <j@x.de>:\n> Na?", "Ja."},
		"German Outlook":        {"Ja.\n\nVon: Joe\nGesendet: Montag\nAn: Uns\nBetreff: Na\n\nNa?", "Ja."},
		"French":                {"Oui.\n\nLe lun. 23 nov. 2026 à 10:15, Joe <j@x.fr> a écrit :\n> Alors ?", "Oui."},
		"Spanish":               {"Sí.\n\nEl lun, 23 nov 2026 a las 10:15, Joe (<j@x.es>) escribió:\n> ¿Y?", "Sí."},
		"Italian":               {"Sì.\n\nIl giorno lun 23 nov 2026 alle ore 10:15 Joe <j@x.it> ha scritto:\n> E?", "Sì."},
		"Dutch":                 {"Ja.\n\nOp ma 23 nov 2026 om 10:15 schreef Joe <j@x.nl>:\n> En?", "Ja."},
		"Polish":                {"Tak.\n\npon., 23 lis 2026 o 10:15 Joe <j@x.pl> napisał(a):\n> No?", "Tak."},
		"Russian":               {"Да.\n\nпн, 23 нояб. 2026 г. в 10:15, Joe <j@x.ru> написал:\n> Ну?", "Да."},
		"Estonian":              {"Jah.\n\nJoe (j@x.ee) kirjutas kuupäeval E, 23. november 2026 kell 10:15:\n> Noh?", "Jah."},
		"Chinese":               {"好。\n\nJoe <j@x.cn> 于2026年11月23日周一 10:15写道：\n> 吗", "好。"},
		"Japanese":              {"はい。\n\n2026年11月23日(月) 10:15 Joe <j@x.jp>のメール:\n> か", "はい。"},
		"Outlook rule":          {"Yes.\n\n________________________________\nFrom: Joe\nSent: Monday\nTo: Us\nSubject: So\n\nSo?", "Yes."},
		"bold labels":           {"Yes.\n\n*From:* Joe\n*Sent:* Monday\n*To:* Us\n\nSo?", "Yes."},
		"ticket line":           {"Yes.\n\n##- Please type your reply above this line -##\nold", "Yes."},
		"answers below":         {"> One?\n\nYes.\n\n> Two?\n\nNo.", "Yes.\n\nNo."},
		"answer at the bottom":  {"On 23.11.2026 Joe <j@x.org> wrote:\n> One?\n\nYes.", "Yes."},
		"signature":             {"Yes.\n-- \nJoe\nCompany", "Yes."},
		"signature, then quote": {"Yes.\n\n--\nJoe\n\nOn 23.11.2026 Joe <j@x.org> wrote:\n> So?\n\nPS. No.", "Yes.\n\nPS. No."},
		"telephone":             {"Yes.\n\nSent from my iPhone\n", "Yes."},
		"Finnish telephone":     {"Joo.\n\nLähetetty iPhonesta\n\n> No?", "Joo."},
		"only a quotation":      {"> So?\n> Well?", "> So?\n> Well?"},
		"only a forward":        {"---------- Forwarded message ---------\nFrom: Joe\n\nHelp", "---------- Forwarded message ---------\nFrom: Joe\n\nHelp"},

		"a colon is no attribution":        {"Joe wrote this:\n\nall of it", "Joe wrote this:\n\nall of it"},
		"own text before an attribution":   {"Please see this\nOn 23.11.2026 Joe <j@x.org> wrote:\n> So?", "Please see this"},
		"a form with labels":               {"Nimi: Maija\nPuhelin: 040\nViesti: Hei", "Nimi: Maija\nPuhelin: 040\nViesti: Hei"},
		"one label is no header block":     {"From: Helsinki\nby train\nat noon", "From: Helsinki\nby train\nat noon"},
		"dashes inside are no signature":   {"a -- b\n---\nc", "a -- b\n---\nc"},
		"a first line of dashes":           {"--\nHello", "--\nHello"},
		"sentence about an iPhone, inside": {"Sent from my iPhone was a line I saw\nin your mail", "Sent from my iPhone was a line I saw\nin your mail"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, foldQuotes(tc.text)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestHTMLReadsAsItLooks(t *testing.T) {
	for name, tc := range map[string]struct{ html, text, own string }{
		"blanks":             {"<p>a\n  b&nbsp;c</p>", "a b c", ""},
		"inside a word":      {"w<b>o</b>rd", "word", ""},
		"breaks":             {"a<br>b<br/>c<br><br>d", "a\nb\nc\n\nd", ""},
		"blocks":             {"<div>a</div><div>b</div><p>c</p>d", "a\nb\n\nc\n\nd", ""},
		"preformatted":       {"<pre>a\n  b</pre>c", "a\n  b\n\nc", ""},
		"table":              {"<table><tr><td>a<td>b<tr><td>c</table>", "a b\nc", ""},
		"entities":           {"&lt;a&gt; &amp;amp; &auml; &#8364;", "<a> &amp; ä €", ""},
		"invisible":          {"a<script>x<b></script><style>y</style><title>z</title>b", "ab", ""},
		"comments":           {"a<!-- x --><![if !mso]>b<![endif]>", "ab", ""},
		"unclosed title":     {"a<title>b", "a", ""},
		"quotation":          {"a<blockquote>b<br>c</blockquote>d", "a\n\n> b\n> c\n\nd", "a\n\nd"},
		"indentation":        {`a<blockquote style="border: none">b</blockquote>`, "a\n\nb", "a\n\nb"},
		"Gmail":              {`a<div class="gmail_quote">On x wrote:<blockquote>b</blockquote></div>c`, "a\nOn x wrote:\n\n> b\n\nc", "a\n\nc"},
		"Outlook":            {`a<div id="divRplyFwdMsg">From: x</div><div>b</div>`, "a\nFrom: x\nb", "a"},
		"Outlook in Outlook": {`a<div id="x_divRplyFwdMsg">From: x</div>b`, "a\nFrom: x\nb", "a"},
		"border":             {`a<div style="border:none;border-top:solid #B5C4DF 1.0pt">x</div>b`, "a\nx\nb", "a"},
		"Proton":             {`a<div class="protonmail_quote">x<div>y</div></div>`, "a\nx\ny", "a"},
		"never closed":       {"a<blockquote>b<blockquote>c", "a\n\n> b\n\n> c", "a"},
		"closed too often":   {"a</blockquote></div>b", "a\n\nb", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := htmlText(tc.html)
			if diff := cmp.Diff(tc.text, tidy(p.text)); diff != "" {
				t.Error(diff)
			}
			if tc.own == "" {
				tc.own = tc.text // nothing is quoted
			}
			if diff := cmp.Diff(tc.own, tidy(remove(p.text, p.quoted))); diff != "" {
				t.Errorf("own text: %s", diff)
			}
		})
	}
}
