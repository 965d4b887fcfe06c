-- One view for each rule; made from detections/sigma by `make detections`.

-- Attempts of Several Flows in One Event (low)
CREATE OR REPLACE VIEW "aggregated_attempts" AS
SELECT * FROM "events" WHERE "class_uid"=4001 AND "metadata"."event_code"='aggregated' AND "severity_id" >= 2;

-- Attempt That a Permissive Fence Allowed (low)
CREATE OR REPLACE VIEW "allowed_attempt" AS
SELECT * FROM "events" WHERE "class_uid"=4001 AND ("metadata"."event_code"='egress-allowed' OR "metadata"."event_code"='forward-allowed' OR "metadata"."event_code"='ingress-allowed' OR "metadata"."event_code"='link-allowed') AND "severity_id" >= 3;

-- Attempt to Bypass the Egress Proxy (low)
CREATE OR REPLACE VIEW "bypass_attempt" AS
SELECT * FROM "events" WHERE "class_uid"=4001 AND ("metadata"."event_code"='egress-blocked' OR "metadata"."event_code"='forward-blocked') AND "severity_id" >= 3;

-- Repeated Attempts to Bypass the Egress Proxy (medium)
CREATE OR REPLACE VIEW "bypass_finding" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='bypass-finding';

-- Attempt to Get the Cloud Credentials of the Host (high)
CREATE OR REPLACE VIEW "cloud_metadata" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='cloud-metadata-finding';

-- Missing Log Records, Counts or Events (medium)
CREATE OR REPLACE VIEW "collection_gap" AS
SELECT * FROM "events" WHERE "class_uid"=6002 AND ("metadata"."event_code"='records-dropped' OR "metadata"."event_code"='events-dropped' OR "metadata"."event_code"='collection-gap') AND "severity_id" >= 3;

-- Counted and Reported Packets Differ (medium)
CREATE OR REPLACE VIEW "counter_mismatch" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='counter-mismatch-finding';

-- Name Resolution Without the Proxy (low)
CREATE OR REPLACE VIEW "dns_in_the_open" AS
SELECT * FROM "events" WHERE "class_uid"=4001 AND ("metadata"."event_code"='dns-blocked' OR "metadata"."event_code"='dns-allowed') AND "severity_id" >= 2;

-- DNS Tunnel From a Sandbox (high)
CREATE OR REPLACE VIEW "dns_tunnel" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='dns-tunnel-finding';

-- Frames Bypassed a Fence (high)
CREATE OR REPLACE VIEW "fence_bypassed" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='fence-bypassed-finding';

-- Removal of a Fence (critical)
CREATE OR REPLACE VIEW "fence_removed" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='fence-removed-finding';

-- Tampering With a Fence (high)
CREATE OR REPLACE VIEW "fence_tampering" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='tampering-finding';

-- Crafted Link-Layer Frames (medium)
CREATE OR REPLACE VIEW "forged_frames" AS
SELECT * FROM "events" WHERE "class_uid"=4001 AND "metadata"."event_code"='link-blocked' AND "severity_id" >= 3;

-- Connection Attempt to a Sandbox (low)
CREATE OR REPLACE VIEW "inbound_attempt" AS
SELECT * FROM "events" WHERE "class_uid"=4001 AND "metadata"."event_code"='ingress-blocked' AND "severity_id" >= 3;

-- Repeated Connection Attempts to a Sandbox (medium)
CREATE OR REPLACE VIEW "inbound_finding" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='inbound-finding';

-- Log Group of a Fence Taken (high)
CREATE OR REPLACE VIEW "log_group_taken" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='log-group-taken-finding';

-- Permissive Fence Allowed Attempts (medium)
CREATE OR REPLACE VIEW "permissive_leak" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='permissive-finding';

-- Fence Without a Watch or Without Log Records (high)
CREATE OR REPLACE VIEW "protection_fault" AS
SELECT * FROM "events" WHERE ("class_uid"=5019 OR "class_uid"=6002) AND ("metadata"."event_code"='fence-degraded' OR "metadata"."event_code"='fault') AND "severity_id" >= 4;

-- Collection of Log Records Was Stopped (high)
CREATE OR REPLACE VIEW "reader_stopped" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='collection-finding';

-- Forged Log Records of a Fence (high)
CREATE OR REPLACE VIEW "records_not_counted" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='records-not-counted-finding';

-- Restores of a Fence Have Stopped (critical)
CREATE OR REPLACE VIEW "restores_stopped" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='restore-stopped-finding';

-- Scan of Destinations or Ports by One User (high)
CREATE OR REPLACE VIEW "scan" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='scan-finding';

-- Changed Surroundings of a Fence (high)
CREATE OR REPLACE VIEW "surroundings_changed" AS
SELECT * FROM "events" WHERE "class_uid"=2004 AND "activity_id"=1 AND "metadata"."event_code"='surroundings-changed-finding';
