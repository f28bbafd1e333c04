// Package reply decides whether a mail answers something that was sent from an account, and says why. It is pure: it
// reads the header block of a mail and asks hooks, it never touches a mailbox, the broker or the clock.
//
// The verdict of [Decide] is one of [Reply], [NotReply], [MachineMail] and [Unsure], always with reason codes:
//
//  1. our own mail that came back to us is no reply;
//  2. machine mail (delivery reports, read receipts, feedback reports, automatic answers) is no customer's reply,
//     whatever else its headers say; a mailing list or bulk mail alone does not veto a proven reply;
//  3. a signed token that we issued; an In-Reply-To or References id that was sent from the account; a task key in the
//     subject from an address that belongs to the task: each proves a reply;
//  4. other ids are a reply under evidence `header`, and unsure under evidence `sent`, because the Sent copy may arrive
//     after its answer;
//  5. a localized reply prefix of the subject alone is unsure; anything else is no reply.
//
// The header reader is made for real mail: it accepts what mail programs, gateways and attackers send, in linear time,
// and returns valid UTF-8 without NUL.
package reply
