-- What a vendor made for itself to sign its webhooks with, sealed; none: it isn't known here.
ALTER TABLE integrations ADD COLUMN signing_secret BLOB;
