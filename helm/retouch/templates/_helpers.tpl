{{/* Names */}}

{{- define "retouch.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{- define "retouch.fullname" -}}
{{- $name := include "retouch.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "retouch.gateway" -}}
{{- include "retouch.fullname" . }}-gateway
{{- end -}}

{{/* The ServiceAccount of a tier. Takes (root, component). */}}
{{- define "retouch.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $account := (index $root.Values $component).serviceAccount -}}
{{- if $account.name -}}
{{- $account.name -}}
{{- else if $account.create -}}
{{- include "retouch.fullname" $root }}-{{ $component }}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{/*
The servers: each entry of `models` over what `server` says of all, and what follows from it.
Gives YAML, as `include` can give nothing else: (include "retouch.servers" . | fromYaml).servers
*/}}
{{- define "retouch.servers" -}}
{{- $servers := list -}}
{{- range .Values.models -}}
  {{- $server := mergeOverwrite (deepCopy $.Values.server) (deepCopy .) -}}
  {{- $hub := false -}}
  {{- range $model := .catalog -}}
    {{- range concat (list $model) ($model.loras | default list) -}}
      {{- $hub = or $hub (regexMatch "^[\\w-][\\w.-]*/[\\w.-]+$" .source) -}}
    {{- end -}}
  {{- end -}}
  {{- $_ := set $server "fullname" (printf "%s-server-%s" (include "retouch.fullname" $) .name) -}}
  {{- $_ := set $server "downloads" (and $hub $server.download.enabled) -}}
  {{- $_ := set $server "claim" $server.cache.existingClaim -}}
  {{- if and $server.cache.persistent (not $server.claim) -}}
    {{- $_ := set $server "claim" (printf "%s-cache" $server.fullname) -}}
  {{- end -}}
  {{- $servers = append $servers $server -}}
{{- end -}}
{{- dict "servers" $servers | toYaml -}}
{{- end -}}

{{/* Labels. Each takes (root, component) and, of servers, the entry's name. */}}

{{- define "retouch.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "retouch.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- if gt (len .) 2 }}
retouch/model: {{ index . 2 | quote }}
{{- end }}
{{- end -}}

{{- define "retouch.labels" -}}
{{- $root := index . 0 -}}
{{- include "retouch.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The same, and others of the object's own, which win over commonLabels. Takes (others, root, component, …). */}}
{{- define "retouch.labelsAnd" -}}
{{- merge (deepCopy (first . | default dict)) (include "retouch.labels" (rest .) | fromYaml) | toYaml -}}
{{- end -}}

{{/* Without the chart's version: it would replace pods that need no change. Takes (root, podLabels, component, …). */}}
{{- define "retouch.podLabels" -}}
{{- include "retouch.selector" (concat (list (index . 0)) (slice . 2)) }}
{{- with merge (deepCopy (index . 1 | default dict)) ((index . 0).Values.commonLabels | default dict) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Values into text */}}

{{/* A scalar as an environment variable has it: Helm's own way with numbers makes 1e+09 of large ones. */}}
{{- define "retouch.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{/* Settings into variables. Takes (prefix, settings). */}}
{{- define "retouch.settings" -}}
{{- $prefix := index . 0 -}}
{{- range $name, $value := index . 1 }}
- name: {{ $prefix }}_{{ snakecase $name | upper }}
  value: {{ include "retouch.text" $value | quote }}
{{- end }}
{{- end -}}

{{/* A container's variables: of two by one name, the one of extraEnv. Takes (the chart's, as text; extraEnv). */}}
{{- define "retouch.env" -}}
{{- $extra := index . 1 | default list -}}
{{- $names := dict -}}
{{- range $extra -}}
{{- $_ := set $names .name true -}}
{{- end -}}
{{- $env := list -}}
{{- range index . 0 | fromYamlArray -}}
{{- if not (hasKey $names .name) -}}
{{- $env = append $env . -}}
{{- end -}}
{{- end -}}
{{- concat $env $extra | toYaml -}}
{{- end -}}

{{/* A quantity in bytes, 0 if there is none. */}}
{{- define "retouch.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000
    "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $number := regexFind "^[0-9.]+" . -}}
{{- mulf (float64 ($number | default "0")) (get $units (trimPrefix $number .)) | floor | int64 -}}
{{- end -}}

{{/* The host of an address. */}}
{{- define "retouch.host" -}}
{{- (urlParse .).hostname -}}
{{- end -}}

{{/* Whether an address is what a policy of port 443 lets through. */}}
{{- define "retouch.is443" -}}
{{- if regexMatch "^https://[^/:]+(:443)?(/.*)?$" . }}yes{{ end -}}
{{- end -}}

{{/* An image. Takes (root, component). */}}
{{- define "retouch.image" -}}
{{- $root := index . 0 -}}
{{- $image := (index $root.Values (index . 1)).image -}}
{{- with $root.Values.image.registry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}
{{- else }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}
{{- end -}}
