-- Made by `make detections`. Change the bucket, the source, its version, the regions and accounts.
-- Athena runs one statement at a time.
CREATE DATABASE IF NOT EXISTS ocsf_nft;

CREATE EXTERNAL TABLE IF NOT EXISTS ocsf_nft.network_activity (
  `class_uid` int,
  `class_name` string,
  `category_uid` int,
  `category_name` string,
  `activity_id` int,
  `activity_name` string,
  `type_uid` bigint,
  `type_name` string,
  `time` bigint,
  `start_time` bigint,
  `end_time` bigint,
  `duration` bigint,
  `timezone_offset` int,
  `count` bigint,
  `severity_id` int,
  `severity` string,
  `status_id` int,
  `status` string,
  `status_code` string,
  `status_detail` string,
  `message` string,
  `action_id` int,
  `action` string,
  `disposition_id` int,
  `disposition` string,
  `firewall_rule` struct<name:string,uid:string,type:string,desc:string,condition:string>,
  `attacks` array<struct<version:string,tactic:struct<uid:string,name:string>,technique:struct<uid:string,name:string>,sub_technique:struct<uid:string,name:string>>>,
  `src_endpoint` struct<name:string,uid:string,ip:string,port:int,svc_name:string,mac:string,interface_name:string,container:struct<uid:string,name:string,runtime:string,image:struct<uid:string,name:string>,pod_uuid:string,orchestrator:string,labels:array<string>>,network_scope_id:int,network_scope:string>,
  `dst_endpoint` struct<name:string,uid:string,ip:string,port:int,svc_name:string,mac:string,interface_name:string,container:struct<uid:string,name:string,runtime:string,image:struct<uid:string,name:string>,pod_uuid:string,orchestrator:string,labels:array<string>>,network_scope_id:int,network_scope:string>,
  `proxy_endpoint` struct<ip:string,port:int>,
  `connection_info` struct<direction_id:int,direction:string,protocol_num:int,protocol_name:string,protocol_ver_id:int,protocol_ver:string,tcp_flags:int,boundary_id:int,boundary:string,community_uid:string>,
  `traffic` struct<packets:bigint,bytes:bigint>,
  `actor` struct<process:struct<name:string,pid:int,cmd_line:string,created_time:bigint,file:struct<name:string,path:string,type_id:int,type:string,hashes:array<struct<algorithm_id:int,algorithm:string,value:string>>,is_deleted:boolean>,`user`:struct<name:string,uid:string,groups:array<struct<uid:string,name:string>>>,parent_process:struct<name:string,pid:int,file:struct<name:string,path:string,type_id:int,type:string,hashes:array<struct<algorithm_id:int,algorithm:string,value:string>>,is_deleted:boolean>,path:string>,namespace_pid:int,container:struct<uid:string,name:string,runtime:string,image:struct<uid:string,name:string>,pod_uuid:string,orchestrator:string,labels:array<string>>,lineage:array<string>,tid:int,path:string,working_directory:string,ancestry:array<struct<name:string,pid:int,path:string>>,ptid:bigint>,`user`:struct<name:string,uid:string,groups:array<struct<uid:string,name:string>>>>,
  `device` struct<name:string,hostname:string,ip:string,uid:string,type_id:int,type:string,os:struct<name:string,type_id:int,type:string,kernel_release:string>,boot_time:bigint,boot_uid:string>,
  `observables` array<struct<name:string,type_id:int,type:string,value:string>>,
  `enrichments` array<struct<name:string,value:string,type:string,provider:string,data:string>>,
  `raw_data` string,
  `unmapped` string,
  `metadata` struct<version:string,uid:string,product:struct<name:string,vendor_name:string,version:string>,loggers:array<struct<name:string,product:struct<name:string,vendor_name:string,version:string>,logged_time:bigint>>,profiles:array<string>,log_name:string,log_provider:string,original_time:string,sequence:bigint,correlation_uid:string,logged_time:bigint,processed_time:bigint,labels:array<string>,log_source:string,log_format:string,original_event_uid:string,event_code:string>,
  `is_alert` boolean,
  `confidence_id` int,
  `confidence` string,
  `raw_data_size` bigint,
  `is_src_dst_assignment_known` boolean,
  `observation_point_id` int,
  `observation_point` string
)
PARTITIONED BY (region string, accountid string, eventday string)
STORED AS PARQUET
LOCATION 's3://example/ext/ocsf-nft-4001/1.8.0/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.region.type' = 'enum',
  'projection.region.values' = 'eu-central-1',
  'projection.accountid.type' = 'enum',
  'projection.accountid.values' = '123456789012',
  'projection.eventday.type' = 'date',
  'projection.eventday.format' = 'yyyyMMdd',
  'projection.eventday.range' = '20260101,NOW',
  'storage.location.template' = 's3://example/ext/ocsf-nft-4001/1.8.0/region=${region}/accountId=${accountid}/eventDay=${eventday}/'
);

CREATE EXTERNAL TABLE IF NOT EXISTS ocsf_nft.detection_finding (
  `class_uid` int,
  `class_name` string,
  `category_uid` int,
  `category_name` string,
  `activity_id` int,
  `activity_name` string,
  `type_uid` bigint,
  `type_name` string,
  `time` bigint,
  `start_time` bigint,
  `end_time` bigint,
  `duration` bigint,
  `timezone_offset` int,
  `count` bigint,
  `severity_id` int,
  `severity` string,
  `status_id` int,
  `status` string,
  `status_detail` string,
  `message` string,
  `action_id` int,
  `action` string,
  `disposition_id` int,
  `disposition` string,
  `confidence_id` int,
  `confidence` string,
  `finding_info` struct<uid:string,title:string,desc:string,types:array<string>,analytic:struct<uid:string,name:string,type_id:int,type:string>,data_sources:array<string>,attacks:array<struct<version:string,tactic:struct<uid:string,name:string>,technique:struct<uid:string,name:string>,sub_technique:struct<uid:string,name:string>>>,first_seen_time:bigint,last_seen_time:bigint,related_events:array<struct<uid:string,type_uid:bigint,type:string,type_name:string>>,related_events_count:bigint>,
  `remediation` struct<desc:string>,
  `firewall_rule` struct<name:string,uid:string,type:string,desc:string,condition:string>,
  `attacks` array<struct<version:string,tactic:struct<uid:string,name:string>,technique:struct<uid:string,name:string>,sub_technique:struct<uid:string,name:string>>>,
  `evidences` array<struct<actor:struct<process:struct<name:string,pid:int,cmd_line:string,created_time:bigint,file:struct<name:string,path:string,type_id:int,type:string,hashes:array<struct<algorithm_id:int,algorithm:string,value:string>>,is_deleted:boolean>,`user`:struct<name:string,uid:string,groups:array<struct<uid:string,name:string>>>,parent_process:struct<name:string,pid:int,file:struct<name:string,path:string,type_id:int,type:string,hashes:array<struct<algorithm_id:int,algorithm:string,value:string>>,is_deleted:boolean>,path:string>,namespace_pid:int,container:struct<uid:string,name:string,runtime:string,image:struct<uid:string,name:string>,pod_uuid:string,orchestrator:string,labels:array<string>>,lineage:array<string>,tid:int,path:string,working_directory:string,ancestry:array<struct<name:string,pid:int,path:string>>,ptid:bigint>,`user`:struct<name:string,uid:string,groups:array<struct<uid:string,name:string>>>>,process:struct<name:string,pid:int,cmd_line:string,created_time:bigint,file:struct<name:string,path:string,type_id:int,type:string,hashes:array<struct<algorithm_id:int,algorithm:string,value:string>>,is_deleted:boolean>,`user`:struct<name:string,uid:string,groups:array<struct<uid:string,name:string>>>,parent_process:struct<name:string,pid:int,file:struct<name:string,path:string,type_id:int,type:string,hashes:array<struct<algorithm_id:int,algorithm:string,value:string>>,is_deleted:boolean>,path:string>,namespace_pid:int,container:struct<uid:string,name:string,runtime:string,image:struct<uid:string,name:string>,pod_uuid:string,orchestrator:string,labels:array<string>>,lineage:array<string>,tid:int,path:string,working_directory:string,ancestry:array<struct<name:string,pid:int,path:string>>,ptid:bigint>,src_endpoint:struct<name:string,uid:string,ip:string,port:int,svc_name:string,mac:string,interface_name:string,container:struct<uid:string,name:string,runtime:string,image:struct<uid:string,name:string>,pod_uuid:string,orchestrator:string,labels:array<string>>,network_scope_id:int,network_scope:string>,dst_endpoint:struct<name:string,uid:string,ip:string,port:int,svc_name:string,mac:string,interface_name:string,container:struct<uid:string,name:string,runtime:string,image:struct<uid:string,name:string>,pod_uuid:string,orchestrator:string,labels:array<string>>,network_scope_id:int,network_scope:string>,connection_info:struct<direction_id:int,direction:string,protocol_num:int,protocol_name:string,protocol_ver_id:int,protocol_ver:string,tcp_flags:int,boundary_id:int,boundary:string,community_uid:string>>>,
  `resources` array<struct<name:string,type:string>>,
  `actor` struct<process:struct<name:string,pid:int,cmd_line:string,created_time:bigint,file:struct<name:string,path:string,type_id:int,type:string,hashes:array<struct<algorithm_id:int,algorithm:string,value:string>>,is_deleted:boolean>,`user`:struct<name:string,uid:string,groups:array<struct<uid:string,name:string>>>,parent_process:struct<name:string,pid:int,file:struct<name:string,path:string,type_id:int,type:string,hashes:array<struct<algorithm_id:int,algorithm:string,value:string>>,is_deleted:boolean>,path:string>,namespace_pid:int,container:struct<uid:string,name:string,runtime:string,image:struct<uid:string,name:string>,pod_uuid:string,orchestrator:string,labels:array<string>>,lineage:array<string>,tid:int,path:string,working_directory:string,ancestry:array<struct<name:string,pid:int,path:string>>,ptid:bigint>,`user`:struct<name:string,uid:string,groups:array<struct<uid:string,name:string>>>>,
  `device` struct<name:string,hostname:string,ip:string,uid:string,type_id:int,type:string,os:struct<name:string,type_id:int,type:string,kernel_release:string>,boot_time:bigint,boot_uid:string>,
  `observables` array<struct<name:string,type_id:int,type:string,value:string>>,
  `enrichments` array<struct<name:string,value:string,type:string,provider:string,data:string>>,
  `raw_data` string,
  `unmapped` string,
  `metadata` struct<version:string,uid:string,product:struct<name:string,vendor_name:string,version:string>,loggers:array<struct<name:string,product:struct<name:string,vendor_name:string,version:string>,logged_time:bigint>>,profiles:array<string>,log_name:string,log_provider:string,original_time:string,sequence:bigint,correlation_uid:string,logged_time:bigint,processed_time:bigint,labels:array<string>,log_source:string,log_format:string,original_event_uid:string,event_code:string>,
  `is_alert` boolean
)
PARTITIONED BY (region string, accountid string, eventday string)
STORED AS PARQUET
LOCATION 's3://example/ext/ocsf-nft-2004/1.8.0/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.region.type' = 'enum',
  'projection.region.values' = 'eu-central-1',
  'projection.accountid.type' = 'enum',
  'projection.accountid.values' = '123456789012',
  'projection.eventday.type' = 'date',
  'projection.eventday.format' = 'yyyyMMdd',
  'projection.eventday.range' = '20260101,NOW',
  'storage.location.template' = 's3://example/ext/ocsf-nft-2004/1.8.0/region=${region}/accountId=${accountid}/eventDay=${eventday}/'
);

CREATE EXTERNAL TABLE IF NOT EXISTS ocsf_nft.device_config_state_change (
  `class_uid` int,
  `class_name` string,
  `category_uid` int,
  `category_name` string,
  `activity_id` int,
  `activity_name` string,
  `type_uid` bigint,
  `type_name` string,
  `time` bigint,
  `start_time` bigint,
  `end_time` bigint,
  `duration` bigint,
  `timezone_offset` int,
  `severity_id` int,
  `severity` string,
  `status_id` int,
  `status` string,
  `status_detail` string,
  `message` string,
  `security_level_id` int,
  `security_level` string,
  `prev_security_level_id` int,
  `prev_security_level` string,
  `actor` struct<process:struct<name:string,pid:int,cmd_line:string,created_time:bigint,file:struct<name:string,path:string,type_id:int,type:string,hashes:array<struct<algorithm_id:int,algorithm:string,value:string>>,is_deleted:boolean>,`user`:struct<name:string,uid:string,groups:array<struct<uid:string,name:string>>>,parent_process:struct<name:string,pid:int,file:struct<name:string,path:string,type_id:int,type:string,hashes:array<struct<algorithm_id:int,algorithm:string,value:string>>,is_deleted:boolean>,path:string>,namespace_pid:int,container:struct<uid:string,name:string,runtime:string,image:struct<uid:string,name:string>,pod_uuid:string,orchestrator:string,labels:array<string>>,lineage:array<string>,tid:int,path:string,working_directory:string,ancestry:array<struct<name:string,pid:int,path:string>>,ptid:bigint>,`user`:struct<name:string,uid:string,groups:array<struct<uid:string,name:string>>>>,
  `device` struct<name:string,hostname:string,ip:string,uid:string,type_id:int,type:string,os:struct<name:string,type_id:int,type:string,kernel_release:string>,boot_time:bigint,boot_uid:string>,
  `observables` array<struct<name:string,type_id:int,type:string,value:string>>,
  `unmapped` string,
  `metadata` struct<version:string,uid:string,product:struct<name:string,vendor_name:string,version:string>,loggers:array<struct<name:string,product:struct<name:string,vendor_name:string,version:string>,logged_time:bigint>>,profiles:array<string>,log_name:string,log_provider:string,original_time:string,sequence:bigint,correlation_uid:string,logged_time:bigint,processed_time:bigint,labels:array<string>,log_source:string,log_format:string,original_event_uid:string,event_code:string>,
  `state_id` int,
  `state` string
)
PARTITIONED BY (region string, accountid string, eventday string)
STORED AS PARQUET
LOCATION 's3://example/ext/ocsf-nft-5019/1.8.0/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.region.type' = 'enum',
  'projection.region.values' = 'eu-central-1',
  'projection.accountid.type' = 'enum',
  'projection.accountid.values' = '123456789012',
  'projection.eventday.type' = 'date',
  'projection.eventday.format' = 'yyyyMMdd',
  'projection.eventday.range' = '20260101,NOW',
  'storage.location.template' = 's3://example/ext/ocsf-nft-5019/1.8.0/region=${region}/accountId=${accountid}/eventDay=${eventday}/'
);

CREATE EXTERNAL TABLE IF NOT EXISTS ocsf_nft.application_lifecycle (
  `class_uid` int,
  `class_name` string,
  `category_uid` int,
  `category_name` string,
  `activity_id` int,
  `activity_name` string,
  `type_uid` bigint,
  `type_name` string,
  `time` bigint,
  `start_time` bigint,
  `end_time` bigint,
  `duration` bigint,
  `timezone_offset` int,
  `count` bigint,
  `severity_id` int,
  `severity` string,
  `status_id` int,
  `status` string,
  `status_detail` string,
  `message` string,
  `app` struct<name:string,vendor_name:string,version:string>,
  `device` struct<name:string,hostname:string,ip:string,uid:string,type_id:int,type:string,os:struct<name:string,type_id:int,type:string,kernel_release:string>,boot_time:bigint,boot_uid:string>,
  `observables` array<struct<name:string,type_id:int,type:string,value:string>>,
  `unmapped` string,
  `metadata` struct<version:string,uid:string,product:struct<name:string,vendor_name:string,version:string>,loggers:array<struct<name:string,product:struct<name:string,vendor_name:string,version:string>,logged_time:bigint>>,profiles:array<string>,log_name:string,log_provider:string,original_time:string,sequence:bigint,correlation_uid:string,logged_time:bigint,processed_time:bigint,labels:array<string>,log_source:string,log_format:string,original_event_uid:string,event_code:string>
)
PARTITIONED BY (region string, accountid string, eventday string)
STORED AS PARQUET
LOCATION 's3://example/ext/ocsf-nft-6002/1.8.0/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.region.type' = 'enum',
  'projection.region.values' = 'eu-central-1',
  'projection.accountid.type' = 'enum',
  'projection.accountid.values' = '123456789012',
  'projection.eventday.type' = 'date',
  'projection.eventday.format' = 'yyyyMMdd',
  'projection.eventday.range' = '20260101,NOW',
  'storage.location.template' = 's3://example/ext/ocsf-nft-6002/1.8.0/region=${region}/accountId=${accountid}/eventDay=${eventday}/'
);
