{{/* What contradicts itself. Each takes the root and gives a line for each mistake, by the value's name. */}}

{{- define "retouch.check.names" -}}
{{- $fullname := include "retouch.fullname" . }}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $fullname) }}
fullnameOverride: must be set: Services' names would begin with {{ $fullname }}; they begin with a letter and have no dot
{{- end }}
{{- $selected := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "retouch/model" }}
{{- $own := concat $selected (list "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart" "retouch/service") }}
{{- range $label, $_ := .Values.commonLabels }}
  {{- if has $label $own }}
commonLabels: {{ $label }} is the chart's own
  {{- end }}
{{- end }}
{{- $pods := dict "gateway" .Values.gateway }}
{{- range (include "retouch.servers" . | fromYaml).servers }}
  {{- $_ := set $pods (printf "models[%s]" .name) . }}
{{- end }}
{{- range $at, $spec := $pods }}
  {{- range $label, $_ := $spec.podLabels }}
    {{- if has $label $selected }}
{{ $at }}.podLabels: {{ $label }} is the chart's own
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "retouch.check.models" -}}
{{- $names := dict -}}
{{- range $entry := .Values.models }}
  {{- $at := printf "models[%s]" .name }}
  {{- if hasKey $names .name }}
{{ $at }}: two entries have that name
  {{- end }}
  {{- $_ := set $names .name true }}
  {{- $ids := dict }}
  {{- range $model := .catalog }}
    {{- if hasKey $ids .id }}
{{ $at }}.catalog: {{ .id }} is listed twice
    {{- end }}
    {{- $_ := set $ids .id true }}
    {{- range $part := concat (list $model) ($model.loras | default list) }}
      {{- $what := eq $part.source $model.source | ternary $model.id (printf "%s, LoRA %s" $model.id $part.source) }}
      {{- if regexMatch "^[\\w-][\\w.-]*/[\\w.-]+$" .source }}
        {{- if not (regexMatch "^[0-9a-f]{40}$" (.revision | default "")) }}
{{ $at }}.catalog: {{ $what }}: pin `revision` to a commit, 40 hexadecimal digits: else pods would serve different weights
        {{- end }}
        {{- if and (not (hasKey $part "id")) (not .weight_name) }}
{{ $at }}.catalog: {{ $what }}: `weight_name` must say which file: servers are offline, and cannot ask the hub
        {{- end }}
      {{- else if .revision }}
{{ $at }}.catalog: {{ $what }}: `revision` is of the hub, and {{ .source }} is not there
      {{- end }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "retouch.check.servers" -}}
{{- $timeout := dig "timeout" 300 .Values.gateway.settings }}
{{- range $server := (include "retouch.servers" . | fromYaml).servers }}
  {{- $at := printf "models[%s]" .name }}
  {{- $scaled := ne .autoscaling.kind "none" }}
  {{- if gt (len .fullname) 54 }}
{{ $at }}.name: the Service {{ .fullname }}-headless has more than 63 characters; `fullnameOverride` may be shorter
  {{- end }}
  {{- if not (dig "limits" "memory" "" .resources) }}
{{ $at }}.resources.limits.memory: must be set: weights pass through memory while they load, on their way to a GPU too
  {{- end }}
  {{- $drain := dig "drainTimeout" 300 .settings }}
  {{- if lt (float64 $drain) (float64 $timeout) }}
{{ $at }}.settings.drainTimeout: {{ $drain }} s is less than gateway.settings.timeout, {{ $timeout }} s: a roll would cut off edits
  {{- end }}
  {{- with .autoscaling }}
    {{- if gt (int .minReplicas) (int .maxReplicas) }}
{{ $at }}.autoscaling: minReplicas is above maxReplicas
    {{- end }}
    {{- if and (eq .kind "keda") (gt (len $server.fullname) 46) }}
{{ $at }}.name: KEDA asks Prometheus for pods by the name {{ $server.fullname }}, which has more than 46 characters: theirs would be cut; `fullnameOverride` may be shorter
    {{- end }}
    {{- if and (eq .kind "keda") (not .prometheus) }}
{{ $at }}.autoscaling.prometheus: KEDA needs its address
    {{- end }}
  {{- end }}
  {{- $shared := has .cache.accessMode (list "ReadWriteMany" "ReadOnlyMany") }}
  {{- $several := $scaled | ternary (gt (int .autoscaling.maxReplicas) 1) (gt (int .replicas) 1) }}
  {{- if and .claim (not $shared) (or $several (eq .rollout "surge")) }}
{{ $at }}.cache.accessMode: {{ .cache.accessMode }} is for one pod at a time: take ReadWriteMany, or one replica with rollout `replace`
  {{- end }}
  {{- if and .cache.persistent (eq .cache.accessMode "ReadOnlyMany") (not .cache.existingClaim) }}
{{ $at }}.cache.accessMode: a new claim that is ReadOnlyMany stays empty
  {{- end }}
  {{- if and .cache.readOnly (not .cache.existingClaim) }}
{{ $at }}.cache.readOnly: needs an existingClaim: nothing would be in it
  {{- end }}
  {{- if and .downloads (or .cache.readOnly (and .claim (eq .cache.accessMode "ReadOnlyMany"))) }}
{{ $at }}.download.enabled: cannot download into a cache that is read-only
  {{- end }}
  {{- if and .downloads (not .cache.existingClaim) (le (int64 (include "retouch.bytes" .cache.size)) 1073741824) }}
{{ $at }}.cache.size: {{ .cache.size }} holds no checkpoint: weights, at what the hub has of them, and some
  {{- end }}
{{- end }}
{{- end -}}

{{- define "retouch.check.gateway" -}}
{{- with .Values.gateway }}
  {{- $several := or .autoscaling.enabled (gt (int .replicas) 1) }}
  {{- if and $several (not .store.url) }}
gateway.store.url: several gateways need a bucket: an image in one's folder is a 404 at the others
  {{- end }}
  {{- if gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas) }}
gateway.autoscaling: minReplicas is above maxReplicas
  {{- end }}
  {{- if and .autoscaling.enabled (not (or (dig "requests" "cpu" "" .resources) (dig "limits" "cpu" "" .resources))) }}
gateway.resources.requests.cpu: must be set: gateway.autoscaling is by what of it is used
  {{- end }}
  {{- if and .store.credentialsSecret (not .store.url) }}
gateway.store.credentialsSecret: credentials, and no bucket in gateway.store.url
  {{- end }}
  {{- if and .redis.url .redis.existingSecret }}
gateway.redis: url and existingSecret both say where it is
  {{- end }}
  {{- $held := int64 (.settings.maxInFlightBytes | default 1073741824) }}
  {{- $body := include "retouch.gateway.body" $ | int64 }}
  {{- $needed := add (mul $held 3) 268435456 }}
  {{- if lt $held $body }}
gateway.settings.maxInFlightBytes: {{ $held }} is less than one largest body, {{ $body }} bytes: it would always be a 429
  {{- end }}
  {{- $limit := dig "limits" "memory" "" .resources }}
  {{- if lt (int64 (include "retouch.bytes" $limit)) $needed }}
gateway.resources.limits.memory: {{ $limit | default "none" }} is not enough: bodies under way take three times settings.maxInFlightBytes, and the process 256Mi: {{ divf $needed 1048576 | ceil }}Mi
  {{- end }}
{{- end }}
{{- if and .Values.tls.clientSecret (not .Values.tls.serverSecret) }}
tls.clientSecret: needs tls.serverSecret: who proves himself must know to whom
{{- end }}
{{- end -}}

{{- define "retouch.check.exposure" -}}
{{- $gateway := .Values.gateway }}
{{- if and (include "retouch.gateway.exposed" .) (not $gateway.keys.existingSecret) (not $gateway.anonymous) }}
gateway.keys.existingSecret: must be set, or gateway.anonymous be true: an ingress, httpRoute or Service of type {{ $gateway.service.type }} would open the gateway to callers that nobody knows
{{- end }}
{{- if or .Values.ingress.enabled .Values.httpRoute.enabled }}
  {{- if not (or $gateway.publicUrl $gateway.settings.trustedProxies) }}
gateway.publicUrl: must be set, or gateway.settings.trustedProxies: image URLs would begin with http:// and what the proxy calls the Service
  {{- end }}
  {{- if and .Values.ingress.enabled (not .Values.ingress.hosts) (not $gateway.publicUrl) }}
ingress.hosts: must be set, or gateway.publicUrl
  {{- end }}
  {{- if and .Values.httpRoute.enabled (not .Values.httpRoute.hostnames) (not $gateway.publicUrl) }}
httpRoute.hostnames: must be set, or gateway.publicUrl
  {{- end }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
httpRoute.parentRefs: must name the Gateway
{{- end }}
{{- end -}}

{{- define "retouch.check.network" -}}
{{- with .Values.networkPolicy }}
{{- if .enabled }}
  {{- $outside := false }}
  {{- range .gateway.clients }}
    {{- $outside = or $outside (hasKey . "namespaceSelector") (hasKey . "ipBlock") }}
  {{- end }}
  {{- if and $.Values.ingress.enabled (not $.Values.ingress.controllerNamespace) (not $outside) }}
ingress.controllerNamespace: must be set, or networkPolicy.gateway.clients name the ingress controller: it would not get in
  {{- end }}
  {{- if and $.Values.httpRoute.enabled (not $.Values.httpRoute.gatewayNamespace) (not $outside) }}
httpRoute.gatewayNamespace: must be set, or networkPolicy.gateway.clients name the Gateway's proxies: they would not get in
  {{- end }}
  {{- if and (ne $.Values.gateway.service.type "ClusterIP") (not $outside) }}
networkPolicy.gateway.clients: a Service of type {{ $.Values.gateway.service.type }} is for callers outside; let them in by an ipBlock
  {{- end }}
  {{- $out := or .gateway.https .gateway.egress }}
  {{- with $.Values.gateway }}
    {{- if and .store.url (not $out) }}
networkPolicy.gateway.https: the gateway cannot reach {{ .store.url }}; for a store in the cluster give a rule in networkPolicy.gateway.egress
    {{- end }}
    {{- if and .settings.fetchImages (not $out) }}
networkPolicy.gateway.https: gateway.settings.fetchImages needs it
    {{- end }}
    {{- if and (or .redis.url .redis.existingSecret) (not $.Values.networkPolicy.gateway.egress) }}
networkPolicy.gateway.egress: the gateway cannot reach Redis: give a rule
    {{- end }}
  {{- end }}
  {{- range (include "retouch.servers" $ | fromYaml).servers }}
    {{- with and .downloads .download.endpoint }}
      {{- if and (not $.Values.networkPolicy.server.egress) (not (include "retouch.is443" .)) }}
networkPolicy.server.egress: the download cannot reach {{ . }}: give a rule
      {{- end }}
    {{- end }}
  {{- end }}
  {{- if $.Values.tracing.endpoint }}
    {{- range $tier := list "gateway" "server" }}
      {{- with index $.Values.networkPolicy $tier }}
        {{- if not (or .egress (and .https (include "retouch.is443" $.Values.tracing.endpoint))) }}
networkPolicy.{{ $tier }}.egress: traces cannot reach {{ $.Values.tracing.endpoint }}: give a rule
        {{- end }}
      {{- end }}
    {{- end }}
  {{- end }}
  {{- if and (ne $.Values.metrics.monitor "none") (not .prometheus) }}
networkPolicy.prometheus: must say where Prometheus is: it could not read the metrics
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}
