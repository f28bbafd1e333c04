package demo

import (
	"bytes"
	"fmt"
	"strings"
)

// delivery is a letter on its way into the Inbox of an account.
type delivery struct {
	account string
	letter
}

// correspondence is what people (and programs) write to the accounts, over and over, in an order in which answers come
// after what they answer.
type correspondence struct {
	sent []*letter // what lies in the Sent mailbox of the support account
	ids  map[string]string
}

func newCorrespondence() *correspondence {
	signed := "\n\n-- \nPosthorn Office Furniture, support\n"
	return &correspondence{ids: map[string]string{}, sent: []*letter{
		{
			from: "Support <" + support + ">", to: "Matti Virtanen <matti.virtanen@tilaaja.example>",
			subject: "Työtuoli ET-200: varaosan toimitus", text: "Hei Matti,\n\nkäsinoja on lähetetty tänään." + signed,
		},
		{
			from: "Support <" + support + ">", to: "田中 花子 <hanako.tanaka@kaisha.example>",
			subject: "Warranty of your standing desk",
			text:    "Dear Ms Tanaka,\n\nyour desk is under warranty until 2029." + signed,
		},
		{
			from: "Support <" + support + ">", to: "Grace Okafor <grace.okafor@harbour.example>",
			subject: "Your return RMA-5512", text: "Dear Grace,\n\nplease send the chair back with the label attached." + signed,
		},
		{
			from: "Support <" + support + ">", to: "old.address@closed.example",
			subject: "Your question about cable trays", text: "Hello,\n\nthey fit every desk of the S series." + signed,
		},
	}}
}

// next is the mail that arrives after n others.
func (c *correspondence) next(n int) *delivery {
	round := n/len(scenes) + 1
	scene := scenes[n%len(scenes)]
	mail := scene.write(c, 1000+round)
	if mail.id == "" {
		mail.id = newID(mail.from)
	}
	c.ids[scene.name] = mail.id
	return mail
}

// scene is one mail of the play. number tells the rounds apart.
type scene struct {
	name  string
	write func(c *correspondence, number int) *delivery
}

func to(account string, l letter) *delivery {
	l.to = map[string]string{sales: "Sales", support: "Support", info: "Posthorn"}[account] + " <" + account + ">"
	return &delivery{account: account, letter: l}
}

// quoted is an answer above the mail that it answers.
func quoted(text, who, what string) string {
	return text + "\n\nOn Sun, 22 Nov 2026 at 16:20, " + who + " wrote:\n> " +
		strings.ReplaceAll(what, "\n", "\n> ") + "\n"
}

// scenes are the mails of one round. The first twelve are there when the demo starts.
var scenes = []scene{
	{"aino", func(_ *correspondence, n int) *delivery {
		return to(sales, letter{
			from:    "Aino Korhonen <aino.korhonen@pohjola-tilat.example>",
			subject: fmt.Sprintf("Tarjouspyyntö: 40 sähköpöytää (viite %d)", n),
			text: "Hei,\n\nolemme muuttamassa uusiin toimitiloihin Tampereelle ja tarvitsemme 40 sähköpöytää sekä työtuolit.\n" +
				"Voisitteko lähettää tarjouksen, jossa näkyvät myös toimitus ja asennus?\n\nYstävällisin terveisin\n" +
				"Aino Korhonen\nPohjola Tilat Oy\n+358 40 555 0142\n",
		})
	}},
	{"wang", func(*correspondence, int) *delivery {
		return to(info, letter{
			from: "王伟 <wang.wei@jiaju.example>", subject: "询价:办公椅", charset: "gb2312",
			text: "您好,\n\n我们想采购二百把办公椅,请发送最新的价格表和交货时间。\n\n谢谢!\n王伟\n",
		})
	}},
	{"matti", func(c *correspondence, _ int) *delivery {
		return to(support, letter{
			from: "Matti Virtanen <matti.virtanen@tilaaja.example>", subject: "VS: " + c.sent[0].subject, charset: "iso-8859-1",
			text: quoted("Hei,\n\nkäsinoja tuli perille, mutta ruuvit puuttuvat. Voitteko lähettää ne?\n\nT. Matti",
				"Support <support@posthorn.example>",
				"Hei Matti,\n\nkäsinoja on lähetetty tänään."),
		}.answers(c.sent[0].id))
	}},
	{"newsletter", func(_ *correspondence, n int) *delivery {
		return to(support, letter{
			from:    "Office Trends <news@office-trends.example>",
			subject: fmt.Sprintf("Office Trends no. %d: the quiet office", n),
			text:    "Read about acoustics, plants and light in this month's issue.\n",
			html:    "<h1>The quiet office</h1><p>Read about acoustics, plants and light.</p>",
			fields: []string{
				"List-Id: Office Trends <news.office-trends.example>", "Precedence: bulk",
				"List-Unsubscribe: <https://office-trends.example/unsubscribe>",
			},
		})
	}},
	{"erik", func(*correspondence, int) *delivery {
		return to(sales, letter{
			from:    "Erik Sjöström <erik.sjostrom@kontorshuset.example>",
			subject: "Fråga om leveranstid på höj- och sänkbara skrivbord",
			charset: "iso-8859-1",
			text: "Hej!\n\nHur lång är leveranstiden till Göteborg för tolv skrivbord i björk, och går det att få dem\n" +
				"på måndag om två veckor?\n\nMed vänliga hälsningar\nErik Sjöström\n",
		})
	}},
	{"hanako", func(c *correspondence, _ int) *delivery {
		return to(support, letter{
			from: "田中 花子 <hanako.tanaka@kaisha.example>", subject: "Re: " + c.sent[1].subject, charset: "iso-2022-jp",
			text: "お世話になっております。\n\n保証の件、ありがとうございました。モーターから音がしますので、修理をお願いします。\n\n田中\n",
		}.answers(c.sent[1].id))
	}},
	{"liam", func(_ *correspondence, n int) *delivery {
		return to(sales, letter{
			from: "Liam O’Connor <liam.oconnor@brightstudio.example>", subject: "Floor plan and a question about “S” desks",
			charset: "windows-1252",
			text: "Hi,\n\nattached is our floor plan – could you tell us how many desks fit, and what they’d cost?\n" +
				"Our budget is about € 18 000.\n\nThanks\nLiam\n",
			files: []file{
				{"floor plan.pdf", "application/pdf", pdf(fmt.Sprintf("Floor plan %d", n))},
				{"materials.csv", "text/csv", []byte("item;colour;count\r\ndesk S;birch;24\r\nchair ET-200;black;24\r\n")},
			},
		})
	}},
	{"stranger", func(*correspondence, int) *delivery {
		return to(support, letter{
			from: "Peter Novak <peter.novak@novak-it.example>", subject: "Do you repair chairs of other makers?",
			text: "Hello,\n\nwe have some old chairs of another maker. Do you repair those too?\n\nPeter Novak\n",
		})
	}},
	{"form", func(_ *correspondence, n int) *delivery {
		return to(info, letter{
			from: "Web shop <noreply@shop.posthorn.example>", subject: fmt.Sprintf("Contact form: question about order %d", n),
			html: "<html><body><h2>Contact form</h2><table><tr><td>Name</td><td>Fatima El Amrani</td></tr><tr><td>Phone</td>" +
				"<td>+32 2 555 01 73</td></tr></table>" +
				"<p>The lamp of my order flickers. Can I have another one?</p></body></html>\n",
			fields: []string{"Reply-To: Fatima El Amrani <fatima@elamrani.example>"},
		})
	}},
	{"absent", func(c *correspondence, _ int) *delivery {
		return to(support, letter{
			from: "Grace Okafor <grace.okafor@harbour.example>", subject: "Automatic reply: " + c.sent[2].subject,
			text:   "I am out of the office until Monday and will answer then.\n",
			fields: []string{"Auto-Submitted: auto-replied", "X-Auto-Response-Suppress: All"},
		}.answers(c.sent[2].id))
	}},
	{"aino again", func(c *correspondence, n int) *delivery {
		return to(sales, letter{
			from:    "Aino Korhonen <aino.korhonen@pohjola-tilat.example>",
			subject: fmt.Sprintf("VS: Tarjouspyyntö: 40 sähköpöytää (viite %d)", n),
			text: quoted("Hei vielä,\n\npöytiä tarvitaankin 44. Toivottavasti tämä ehtii mukaan tarjoukseen.\n\nAino",
				"Aino Korhonen <aino.korhonen@pohjola-tilat.example>",
				"olemme muuttamassa uusiin toimitiloihin Tampereelle"),
		}.answers(c.ids["aino"]))
	}},
	{"bounce", func(c *correspondence, _ int) *delivery {
		return to(support, letter{
			from: "Mail Delivery System <MAILER-DAEMON@mx.example.net>", subject: "Undelivered Mail Returned to Sender",
			text: "Your mail to <old.address@closed.example> could not be delivered: no such user.\n",
			report: "Reporting-MTA: dns; mx.example.net\r\n\r\nFinal-Recipient: rfc822; old.address@closed.example\r\n" +
				"Action: failed\r\nStatus: 5.1.1\r\n",
			fields: []string{"Auto-Submitted: auto-replied", "Return-Path: <>"},
		}.answers(c.sent[3].id))
	}},
	{"grace", func(c *correspondence, _ int) *delivery {
		return to(support, letter{
			from: "Grace Okafor <grace.okafor@harbour.example>", subject: "Re: " + c.sent[2].subject,
			text: quoted("Back at my desk: the label does not print. See the picture.\n\nGrace",
				"Support <support@posthorn.example>",
				"please send the chair back with the label attached."),
			files: []file{{"label.png", "image/png", pixel}},
		}.answers(c.sent[2].id))
	}},
	{"sato", func(*correspondence, int) *delivery {
		return to(info, letter{
			from: "佐藤 健 <ken.sato@butsuryu.example>", subject: "会議用テーブルについて", charset: "iso-2022-jp",
			text: "はじめまして。\n\n会議用テーブルを六台購入したいのですが、カタログを送っていただけますか。\n\n佐藤\n",
		})
	}},
	{"erik again", func(c *correspondence, _ int) *delivery {
		return to(sales, letter{
			from:    "Erik Sjöström <erik.sjostrom@kontorshuset.example>",
			subject: "SV: Fråga om leveranstid på höj- och sänkbara skrivbord",
			charset: "iso-8859-1",
			text:    "Hej igen!\n\nVi väntar på ert svar. Går det också att få skrivborden monterade på plats?\n\nErik\n",
		}.answers(c.ids["erik"]))
	}},
	{"jürgen", func(_ *correspondence, n int) *delivery {
		return to(sales, letter{
			from:    "Jürgen Groß <juergen.gross@buerowelt.example>",
			subject: fmt.Sprintf("Angebot für Großraumbüro, Projekt %d", n),
			charset: "windows-1252",
			text: "Guten Tag,\n\nfür unser Großraumbüro suchen wir „ruhige“ Trennwände für 30 Plätze – bitte mit Preisen\n" +
				"in €.\n\nMit freundlichen Grüßen\nJürgen Groß\n",
			html: "<p>Guten Tag,</p><p>für unser Großraumbüro suchen wir „ruhige“ Trennwände für 30 Plätze – bitte mit " +
				"Preisen in €.</p><p>Mit freundlichen Grüßen<br>Jürgen Groß</p>",
		})
	}},
}

// pixel is the smallest PNG picture.
var pixel = []byte("\x89PNG\r\n\x1a\n" +
	"\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89" +
	"\x00\x00\x00\rIDATx\xdac\xfc\xcf\xc0P\x0f\x00\x04\x85\x01\x80\x84\xa9\x8c!\x00\x00\x00\x00IEND\xaeB`\x82")

// pdf is a document of one page with one line on it.
func pdf(line string) []byte {
	content := "BT /F1 24 Tf 72 720 Td (" + line + ") Tj ET"
	objects := []string{
		"<< /Type /Catalog /Pages 2 0 R >>",
		"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
		"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
		fmt.Sprintf("<< /Length %d >>\nstream\n%s\nendstream", len(content), content),
		"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
	}
	var out bytes.Buffer
	out.WriteString("%PDF-1.4\n")
	offsets := make([]int, len(objects))
	for i, object := range objects {
		offsets[i] = out.Len()
		fmt.Fprintf(&out, "%d 0 obj\n%s\nendobj\n", i+1, object)
	}
	start := out.Len()
	fmt.Fprintf(&out, "xref\n0 %d\n0000000000 65535 f \n", len(objects)+1)
	for _, offset := range offsets {
		fmt.Fprintf(&out, "%010d 00000 n \n", offset)
	}
	fmt.Fprintf(&out, "trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n", len(objects)+1, start)
	return out.Bytes()
}
