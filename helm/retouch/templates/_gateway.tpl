{{/* Parts of a gateway's pod. Each takes the root. */}}

{{/* Seconds from being told to go until SIGKILL: the gateway itself waits for `timeout` and 5 s. */}}
{{- define "retouch.gateway.grace" -}}
{{- $settings := .Values.gateway.settings -}}
{{- add .Values.gateway.preStopSeconds (ceil (dig "drainWait" 1 $settings)) (ceil (dig "timeout" 300 $settings)) 15 -}}
{{- end -}}

{{/* Seconds until a roll has failed: the longest that a server has. */}}
{{- define "retouch.gateway.deadline" -}}
{{- $longest := 0 -}}
{{- range (include "retouch.servers" . | fromYaml).servers -}}
{{- $longest = max $longest (include "retouch.server.deadline" . | int) -}}
{{- end -}}
{{- $longest -}}
{{- end -}}

{{/* The servers, in the order of `models`. */}}
{{- define "retouch.gateway.upstream" -}}
{{- $targets := list -}}
{{- range (include "retouch.servers" . | fromYaml).servers -}}
{{- $host := printf "%s-headless.%s.svc.%s" .fullname $.Release.Namespace $.Values.clusterDomain -}}
{{- $targets = append $targets (printf "dns:///%s:50051" $host) -}}
{{- end -}}
{{- join "," $targets -}}
{{- end -}}

{{/* Bytes of the largest body. */}}
{{- define "retouch.gateway.body" -}}
{{- .Values.gateway.settings.maxBodyBytes | default (add (div (mul (int64 .Values.maxImageBytes) 51) 2) 1048576) | int64 -}}
{{- end -}}

{{/* Whether callers from outside the cluster get to it through something of this chart's. */}}
{{- define "retouch.gateway.exposed" -}}
{{- if or .Values.ingress.enabled .Values.httpRoute.enabled (ne .Values.gateway.service.type "ClusterIP") }}yes{{ end -}}
{{- end -}}

{{- define "retouch.gateway.env" -}}
{{- $gateway := .Values.gateway -}}
- {name: RETOUCH_GATEWAY_HOST, value: {{ .Values.listen | quote }}}
- {name: RETOUCH_GATEWAY_UPSTREAM, value: {{ include "retouch.gateway.upstream" . | quote }}}
- {name: RETOUCH_GATEWAY_MAX_IMAGE_BYTES, value: {{ include "retouch.text" .Values.maxImageBytes | quote }}}
- {name: RETOUCH_GATEWAY_STORE, value: {{ $gateway.store.url | default "/images" | quote }}}
{{- with $gateway.publicUrl }}
- {name: RETOUCH_GATEWAY_PUBLIC_URL, value: {{ . | quote }}}
{{- end }}
{{- if $gateway.keys.existingSecret }}
- {name: RETOUCH_GATEWAY_KEYS, value: /etc/retouch/keys/keys.toml}
{{- else }}
# Whoever reaches the pod may use it: those whom the NetworkPolicy lets in.
- {name: RETOUCH_GATEWAY_ANONYMOUS, value: "true"}
{{- end }}
{{- if $gateway.signingKey.existingSecret }}
- {name: RETOUCH_GATEWAY_SIGNING_KEY_FILE, value: /etc/retouch/signing/signing-key}
{{- end }}
{{- with $gateway.redis }}
{{- if .existingSecret }}
- name: RETOUCH_GATEWAY_LIMITS_STORE
  valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .key | quote }}}}
{{- else if .url }}
- {name: RETOUCH_GATEWAY_LIMITS_STORE, value: {{ .url | quote }}}
{{- end }}
{{- end }}
{{- if .Values.tls.serverSecret }}
- {name: RETOUCH_GATEWAY_UPSTREAM_CA, value: /etc/retouch/tls/ca.crt}
{{- end }}
{{- if .Values.tls.clientSecret }}
- {name: RETOUCH_GATEWAY_UPSTREAM_CERT, value: /etc/retouch/tls/tls.crt}
- {name: RETOUCH_GATEWAY_UPSTREAM_KEY, value: /etc/retouch/tls/tls.key}
{{- end }}
{{- include "retouch.settings" (list "RETOUCH_GATEWAY" $gateway.settings) }}
{{- include "retouch.tracing" . }}
{{- end -}}

{{- define "retouch.gateway.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if not .Values.gateway.store.url }}
- {name: images, mountPath: /images}
{{- end }}
{{- if .Values.gateway.keys.existingSecret }}
- {name: keys, mountPath: /etc/retouch/keys, readOnly: true}
{{- end }}
{{- if .Values.gateway.signingKey.existingSecret }}
- {name: signing, mountPath: /etc/retouch/signing, readOnly: true}
{{- end }}
{{- if .Values.tls.serverSecret }}
- {name: tls, mountPath: /etc/retouch/tls, readOnly: true}
{{- end }}
{{- with .Values.gateway.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "retouch.gateway.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.gateway.tmpSize }}}
{{- if not .Values.gateway.store.url }}
- name: images
  emptyDir: {sizeLimit: {{ .Values.gateway.store.size }}}
{{- end }}
{{- with .Values.gateway.keys }}
{{- if .existingSecret }}
- name: keys
  secret:
    secretName: {{ .existingSecret | quote }}
    defaultMode: 0440
    # Of the Secret's keys this one alone: another may be an API key in plain.
    items:
      - {key: {{ .key | quote }}, path: keys.toml}
{{- end }}
{{- end }}
{{- with .Values.gateway.signingKey }}
{{- if .existingSecret }}
- name: signing
  secret:
    secretName: {{ .existingSecret | quote }}
    defaultMode: 0440
    items:
      - {key: {{ .key | quote }}, path: signing-key}
{{- end }}
{{- end }}
{{- with .Values.tls.serverSecret }}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ . | quote }}
          items:
            - {key: ca.crt, path: ca.crt}
      {{- with $.Values.tls.clientSecret }}
      - secret:
          name: {{ . | quote }}
          items:
            - {key: tls.crt, path: tls.crt}
            - {key: tls.key, path: tls.key}
      {{- end }}
{{- end }}
{{- with .Values.gateway.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
