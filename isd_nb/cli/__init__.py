"""The commands; each module holds one, `options` what they share."""
