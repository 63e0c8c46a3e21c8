{{/* Parts of a server's pod. `server` is one of "retouch.servers". */}}

{{/* Seconds from being told to go until SIGKILL. Takes the server. */}}
{{- define "retouch.server.grace" -}}
{{- $settings := .settings -}}
{{- add .preStopSeconds (ceil (dig "drainWait" 1 $settings)) (ceil (dig "drainTimeout" 300 $settings)) 10 -}}
{{- end -}}

{{/* Seconds until a roll has failed: not while a pod may still download and load. Takes the server. */}}
{{- define "retouch.server.deadline" -}}
{{- add .startupSeconds 1800 -}}
{{- end -}}

{{/* Takes (root, server). */}}
{{- define "retouch.server.env" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
{{- $tls := $root.Values.tls -}}
- {name: RETOUCH_SERVER_HOST, value: {{ $root.Values.listen | quote }}}
- {name: RETOUCH_SERVER_MODELS, value: /etc/retouch/catalog/models.yaml}
- {name: RETOUCH_SERVER_MAX_IMAGE_BYTES, value: {{ include "retouch.text" $root.Values.maxImageBytes | quote }}}
{{- if $tls.serverSecret }}
- {name: RETOUCH_SERVER_TLS_CERT, value: /etc/retouch/tls/tls.crt}
- {name: RETOUCH_SERVER_TLS_KEY, value: /etc/retouch/tls/tls.key}
{{- end }}
{{- if $tls.clientSecret }}
- {name: RETOUCH_SERVER_TLS_CLIENT_CA, value: /etc/retouch/tls/client-ca.crt}
{{- else }}
# Callers are not authenticated here: the NetworkPolicy says who they are.
- {name: RETOUCH_SERVER_ANONYMOUS, value: "true"}
{{- end }}
{{- if $root.Values.c2pa.existingSecret }}
- {name: RETOUCH_SERVER_C2PA_CERT, value: /etc/retouch/c2pa/tls.crt}
- {name: RETOUCH_SERVER_C2PA_KEY, value: /etc/retouch/c2pa/tls.key}
{{- end }}
{{- include "retouch.settings" (list "RETOUCH_SERVER" $server.settings) }}
- {name: HF_HOME, value: /cache}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- $held := list -}}
{{- range $kind := list "limits" "requests" -}}
{{- if dig $kind "cpu" "" $server.resources -}}
{{- $held = append $held (printf "%s.cpu" $kind) -}}
{{- end -}}
{{- end -}}
{{- with $held }}
# torch would start a thread for each core of the node.
- name: OMP_NUM_THREADS
  valueFrom: {resourceFieldRef: {resource: {{ first . }}}}
{{- end }}
{{- include "retouch.tracing" $root }}
{{- end -}}

{{/* Of the init container. Takes the server. */}}
{{- define "retouch.download.env" -}}
- {name: HF_HOME, value: /cache}
- {name: RETOUCH_SERVER_MODELS, value: /etc/retouch/catalog/models.yaml}
# Bars and notes are for a terminal.
- {name: HF_HUB_DISABLE_PROGRESS_BARS, value: "1"}
- {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
- {name: TRANSFORMERS_VERBOSITY, value: error}
{{- with .download.endpoint }}
- {name: HF_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .download }}
{{- if .tokenSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .tokenSecret | quote }}, key: {{ .tokenKey | quote }}}}
{{- end }}
{{- end }}
{{- end -}}

{{/*
Alive: the process answers. Ready, and started: models are loaded, and it does not stop. Never by the queue or the GPU.
Kubernetes' gRPC probes cannot speak TLS; then they are by HTTP. Takes (root, server).
*/}}
{{- define "retouch.server.probes" -}}
{{- $ready := "grpc: {port: 50051, service: retouch.v1.ImageEdit}" -}}
{{- $alive := "grpc: {port: 50051}" -}}
{{- if (index . 0).Values.tls.serverSecret -}}
{{- $ready = "httpGet: {path: /readyz, port: metrics}" -}}
{{- $alive = "httpGet: {path: /healthz, port: metrics}" -}}
{{- end -}}
startupProbe:
  {{ $ready }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ divf (index . 1).startupSeconds 5 | ceil }}
readinessProbe:
  {{ $ready }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
livenessProbe:
  {{ $alive }}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}

{{/* Takes the server. What it downloads onto the node's disk is asked for, or it would be evicted from a small one. */}}
{{- define "retouch.server.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if and .downloads (not .claim) -}}
{{- $requests := merge (deepCopy ($resources.requests | default dict)) (dict "ephemeral-storage" .cache.size) -}}
{{- $_ := set $resources "requests" $requests -}}
{{- end -}}
{{- if .gpus -}}
{{- $limits := merge (dict .gpuResource .gpus) ($resources.limits | default dict) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Takes (root, server). */}}
{{- define "retouch.server.volumes" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
- name: cache
  {{- if $server.claim }}
  persistentVolumeClaim: {claimName: {{ $server.claim | quote }}, readOnly: {{ $server.cache.readOnly | default false }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $server.cache.size }}}
  {{- end }}
- name: catalog
  configMap: {name: {{ $server.fullname }}}
- name: tmp
  emptyDir: {sizeLimit: {{ $server.tmpSize }}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ $server.shmSize }}}
{{- with $root.Values.tls.serverSecret }}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ . | quote }}
          items:
            - {key: tls.crt, path: tls.crt}
            - {key: tls.key, path: tls.key}
      {{- with $root.Values.tls.clientSecret }}
      - secret:
          name: {{ . | quote }}
          items:
            - {key: ca.crt, path: client-ca.crt}
      {{- end }}
{{- end }}
{{- with $root.Values.c2pa.existingSecret }}
- name: c2pa
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - {key: tls.crt, path: tls.crt}
      - {key: tls.key, path: tls.key}
{{- end }}
{{- with $server.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
