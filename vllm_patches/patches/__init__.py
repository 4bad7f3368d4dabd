"""One file a row of the ledger."""
