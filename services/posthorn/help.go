package main

import "github.com/alecthomas/kong"

// helpTexts are those that are too long for a tag. data is the default data directory.
func helpTexts(data string) kong.Vars {
	return kong.Vars{
		"data": data,
		"help_nats": "NATS server to use: a URL, or embedded for one inside the program. By default run starts an " +
			"embedded one, and every other command finds the running program through DATA/ready.json.",
		"help_data":     "Data directory (default: " + data + ").",
		"help_key_file": "File with the keys that seal passwords (default: keys in the data directory).",
		"help_config": "YAML file with the flags of run and these ones as keys. The environment and the command line win " +
			"over it.",
		"help_log": "How to log to standard error: text or json.",
		"help_log_level": "Least level that is logged: debug, info, warn or error (default: info for run, warn for the " +
			"others).",
		"help_demo":        "Show everything at work, with built-in mail servers into which realistic mail arrives.",
		"help_cmd_sources": "See, apply, test, pause and resume the mailboxes that mail is taken in from.",
		"help_sources":     "YAML file with sources, applied at the start.",
		"help_doctor":      "Check everything that has to be right, and say what to do about what is not.",
		"help_provision":   "Create the streams and consumers on a NATS server, or bring them up to date.",
		"help_schema":      "Print the JSON Schema of an event type, or the list of types.",
		"help_stages":      "Stages to run: all, or some of fetcher, parser, router and archiver.",
		"help_prune":       "Remove the sources that are no longer in the file, instead of pausing them.",
		"help_ready_json":  "Print one line of JSON on standard output once every stage is at work: ready, http, nats.",
		"ports": "Ports that a mail server may have, numbers and ranges such as 10000-10100 " +
			"(default: 110,143,993,995).",
		"policy": "Addresses that a mail server may have: private-ok or public-only. Link-local and metadata " +
			"addresses never.",
		"help_timeout": "How long a mail server may be silent.",
		"http":         "Address of health and metrics; port 0 picks a free one (default: 127.0.0.1:8080).",
		"listen": "Address at which the embedded NATS server serves local subscribers and the other commands; port " +
			"0 picks a free one, off serves nobody (default: 127.0.0.1:4222).",
		"help_nats_monitor": "Monitoring address of an external NATS server, such as http://127.0.0.1:8222, to see that it " +
			"writes every message to disk at once. Without that no mail is moved or deleted.",
		"help_assume_durable": "Vouch for an external NATS server that writes every message to disk at once.",
		"help_max_store": "Most bytes that the embedded NATS server keeps on disk (default: three quarters of the free " +
			"space).",
		"help_provision_replicas": "Copies of every stream: 1, or 3 on a cluster (default: as they are; 1 for new ones).",
		"help_provision_max_mail": "Most bytes of raw mail that are kept (default: as it is; none for new streams). When " +
			"it is full no mail is fetched; nothing is dropped.",
		"help_schema_type": "Event type, such as posthorn.contact-request.received.v1; without one the types are " +
			"listed.",
		"help_sources_trace":         "Show what is spoken with the mail server of a source, without passwords and contents.",
		"help_sources_prune":         "Remove sources from a file that are no longer in it, instead of pausing them.",
		"help_sources_allowed_ports": "Ports that a mail server may have (default: those that the running program allows).",
		"help_watch_since": "Begin with what was stored since then: a time (2026-11-23T08:00:00Z), a date, how long ago " +
			"(2h), or all.",
	}
}
