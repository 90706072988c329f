-- Whether what a crash interrupted may be tried again. Nobody has said so yet: not.
ALTER TABLE lanes ADD COLUMN repeatable BIGINT NOT NULL DEFAULT 0;
